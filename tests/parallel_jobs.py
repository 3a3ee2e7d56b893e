"""Jobs for `edvit.builder.jobs.parallel`, in a module that a fresh process can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from edvit.builder.jobs.parallel import run_jobs
from edvit.errors import BuildError


def square(job, progress):
    """Later jobs are done first."""
    for step in range(5):
        progress(step + 1, 5)
        time.sleep(0.02 * (3 - job) if job < 3 else 0)
    return {"square": job * job, "threads": torch.get_num_threads(), "pid": os.getpid()}


def draw(job, progress):
    """Numbers from a seeded generator, and a sum whose last bits depend on the number of threads."""
    torch.manual_seed(job)
    return torch.randn(200_000).sum().item()


def fail_at_two(job, progress):
    if job == 2:
        raise BuildError("job 2 cannot be done")
    return job


def die_at_one(job, progress):
    """Killed as the kernel kills for memory, in the middle of reporting."""
    if job == 1:
        progress(1, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def report_for_ever(job, progress):
    (Path(job) / str(os.getpid())).touch()
    for step in range(10**9):
        progress(step, 10**9)
        time.sleep(0.001)


if __name__ == "__main__":  # a build with two busy workers, to be killed
    run_jobs(report_for_ever, [sys.argv[1], sys.argv[1]], workers=2, threads=1)
