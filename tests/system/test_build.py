"""Builds that are killed, as the kernel or a power cut kills them."""

import io
import resource
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest
import torch
from rich.console import Console

import tiny_build as tiny
from edvit.builder.jobs.progress import Reporter
from edvit.builder.pipeline import build
from serving import alive, wait_for
from tiny_build import tiny_config


def finished(work):
    return sorted(path.name.rsplit("-", 1)[0] for path in work.glob("[a-z]*-*"))


def sizes(work):
    """Bytes of every file, but of what a result's note says of the folder that made it."""
    files = [path for path in work.rglob("*") if path.is_file() and path.name not in {"done.json", "limit.json"}]
    return {str(path.relative_to(work)): path.stat().st_size for path in files}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_build_killed_in_recovery_leaves_no_bundle_and_goes_on_from_there(tiny_build, tmp_path):
    torch.set_num_threads(1)
    out, work = tmp_path / "out", tmp_path / "out-work"
    process = subprocess.Popen([sys.executable, tiny.__file__, str(out)], stderr=subprocess.PIPE, text=True)
    try:
        found = wait_for(lambda: list(work.glob("recover-*")) or process.poll() is not None, within_s=600)
        assert found, "no sub-model was recovered"
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, said
    assert not out.exists()
    assert wait_for(lambda: not [worker for worker in workers if alive(worker)])
    done = finished(work)
    assert "recover" in done
    assert "fuse" not in done
    kept = {path: path.stat().st_mtime_ns for path in work.glob("[a-z]*-*")}

    bundle, _ = build(tiny_config(), out)
    assert bundle.digest == tiny_build.bundle.digest, "two workers, killed, resumed with one: the same bundle"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was done is not done again"
    assert finished(work) == finished(tiny_build.work)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list(work.glob(".scratch-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "stage", ["data", "base", "teacher", "statistics", "prune", "recover", "export", "fuse", "test"]
)
def test_a_build_killed_within_a_stage_goes_on_from_its_checkpoint(tiny_build, tmp_path, stage):
    torch.set_num_threads(1)
    out, work = tmp_path / "out", tmp_path / "out-work"
    process = subprocess.Popen([sys.executable, tiny.__file__, str(out)], stderr=subprocess.PIPE, text=True)
    try:
        begun = partial(work.glob, f".unfinished-{stage}-*/state.pt")
        assert wait_for(lambda: list(begun()) or process.poll() is not None, within_s=600), f"no checkpoint in {stage}"
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, said
    file = io.StringIO()
    bundle, _ = build(tiny_config(), out, report=Reporter(Console(file=file, width=200)))
    assert bundle.digest == tiny_build.bundle.digest
    assert "resumed from step" in file.getvalue() or stage in finished(work)
    assert finished(work) == finished(tiny_build.work)
    assert [path.name for path in work.glob(".*")] == [".lock"]
    assert sizes(work) == sizes(tiny_build.work), "a killed build leaves nothing on the disk"


@pytest.mark.slow
def test_a_build_ends_with_ctrl_c_and_keeps_what_is_done(tmp_path):
    out, work = tmp_path / "out", tmp_path / "out-work"
    command = [sys.executable, "-m", "edvit", "build", "--devices", "2", "--base-epochs", "1", "--calibration", "8"]
    command += ["--recover-epochs", "1", "--no-baseline"]
    process = subprocess.Popen([*command, "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_for(lambda: list(work.glob("prune-*")) or process.poll() is not None, within_s=200)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not out.exists()
    assert {"base", "data", "teacher"} <= set(finished(work))
    assert wait_for(lambda: not [worker for worker in workers if alive(worker)])
    assert list(work.glob(".scratch-*")) == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_build_goes_on_afterwards(tmp_path):
    """A limit on the size of files stands for the disk: of the decoded images, then of the base model's weights."""
    work = tmp_path / "out-work"
    command = [sys.executable, "-m", "edvit", "build", "--devices", "1", "--base-epochs", "1", "--calibration", "8"]
    command += ["--recover-epochs", "0", "--views", "1", "--no-baseline", "-o", str(tmp_path / "out")]
    said = f"no space left on the disk (the work folder is {work}); free some and run again: what is finished is kept"
    for room, kept in ((50_000, []), (1_000_000, ["data"])):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        full = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=200, check=False)
        assert full.returncode == 1
        assert full.stderr.splitlines() == [f"edvit: {said}"]
        assert list(work.glob(".scratch-*")) == []
        assert sorted(set(finished(work))) == kept
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()
