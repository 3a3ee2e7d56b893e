from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import torch

import parallel_jobs
from edvit.builder.jobs.parallel import run_jobs, torch_threads
from edvit.errors import BuildError
from serving import alive, wait_for


def children():
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    seen = []
    jobs = [0, 1, 2, 3]
    results = run_jobs(
        parallel_jobs.square, jobs, workers=workers, threads=1, progress=lambda *state: seen.append(state)
    )
    assert [result["square"] for result in results] == [0, 1, 4, 9]
    assert {result["threads"] for result in results} == {1}
    assert (os.getpid() in {result["pid"] for result in results}) == (workers == 1)
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_number_of_workers_does_not_change_a_result():
    jobs = [3, 4]
    assert run_jobs(parallel_jobs.draw, jobs, workers=1, threads=1) == run_jobs(
        parallel_jobs.draw, jobs, workers=2, threads=1
    )


def test_no_jobs_no_results():
    assert run_jobs(parallel_jobs.square, [], workers=4, threads=1) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised(workers):
    with pytest.raises(BuildError, match=r"^job 2 cannot be done$"):
        run_jobs(parallel_jobs.fail_at_two, [1, 2, 3], workers=workers, threads=1)
    assert not [child for child in children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_worker_is_an_error_that_says_what_to_try():
    before = threading.active_count()
    with pytest.raises(BuildError, match=r"killed.*--workers 1"):
        run_jobs(parallel_jobs.die_at_one, [0, 1, 2], workers=2, threads=1)
    assert wait_for(lambda: threading.active_count() <= before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    command = [sys.executable, parallel_jobs.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: len(list(tmp_path.iterdir())) == 2, within_s=60)
        workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
        process.send_signal(number)
        process.wait(20)
        assert wait_for(lambda: not [worker for worker in workers if alive(worker)])
    finally:
        process.kill()
        process.wait()


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
