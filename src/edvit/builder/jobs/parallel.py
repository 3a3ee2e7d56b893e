"""Independent training jobs in processes of their own, a fixed number of threads each.

Small models train faster as two processes of one thread than as one process of two: their matrix products are
too small to share out.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Protocol, TypeVar

import torch

from edvit.errors import BuildError

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

_to_parent: Connection | None = None


class Pool(Protocol):
    """Where independent jobs run, a core each."""

    def run(self, work: Callable[[Job, Progress], Result], jobs: Sequence[Job], *, progress: Progress) -> list[Result]:
        """Run jobs as `run_jobs` does, with one torch thread each."""

    def describe(self) -> str:
        """How many jobs run at a time, and where."""


@dataclass(frozen=True)
class Processes:
    """On this machine, `workers` jobs at a time."""

    workers: int

    def run(self, work: Callable[[Job, Progress], Result], jobs: Sequence[Job], *, progress: Progress) -> list[Result]:
        """Run jobs as `run_jobs` does, with one torch thread each."""
        return run_jobs(work, jobs, workers=self.workers, threads=1, progress=progress)

    def describe(self) -> str:
        """How many jobs run at a time."""
        return f"{self.workers} at a time"


def run_jobs(
    work: Callable[[Job, Progress], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    progress: Progress = lambda done, total: None,
) -> list[Result]:
    """Results of `work(job, progress)` for every job, in the order of `jobs`.

    Args:
        work: a module-level function: it runs in another process.
        workers: processes at a time; with one worker or one job it runs in this process.
        threads: torch threads of each process.

    Raises:
        BuildError: a process was killed (out of memory, most likely). What `work` raises is raised here.
    """
    if workers <= 1 or len(jobs) <= 1:
        with torch_threads(threads):
            return [work(job, _scaled(progress, i, len(jobs))) for i, job in enumerate(jobs)]
    context = _Spawning()
    # A pipe, not a queue: a queue's lock would stay locked for ever by a worker that is killed while it reports.
    # Messages are far shorter than PIPE_BUF, so that what several processes write does not mix.
    incoming, outgoing = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(incoming, len(jobs), progress), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_set_up, initargs=(outgoing, threads)
    )
    try:
        with _interrupt_deferred():
            futures = {pool.submit(_run, work, job, i): i for i, job in enumerate(jobs)}
        results = {futures[future]: future.result() for future in as_completed(futures)}
        pool.shutdown()
        return [results[i] for i in range(len(jobs))]
    except BrokenProcessPool:
        raise BuildError("a training process was killed; with too little memory, try --workers 1") from None
    finally:
        for process in context.started:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        outgoing.send(None)
        listener.join()
        incoming.close()
        outgoing.close()


class _Spawning(SpawnContext):
    """Spawns processes and remembers them: before Python 3.14 a pool cannot end its own in mid-job."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self.started.append(process)
        return process


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Ctrl-C waits until the block is left: a process that loses its parent while it starts prints a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch's threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scaled(progress: Progress, index: int, jobs: int) -> Progress:
    return lambda done, total: progress(index * total + done, jobs * total)


def _set_up(outgoing: Connection, threads: int) -> None:
    global _to_parent  # noqa: PLW0603  (a process's own channel to its parent)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    _to_parent = outgoing


def _end_with_parent() -> None:
    """End this process when its parent does, however that ended: the pool alone would leave it waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[Any, Progress], Any], job: Any, index: int) -> Any:
    outgoing = _to_parent
    if outgoing is None:
        raise BuildError("a training process was not set up")
    return work(job, lambda done, total: outgoing.send((index, done, total)))


def _listen(incoming: Connection, jobs: int, progress: Progress) -> None:
    done, total = [0] * jobs, [0] * jobs
    while True:
        try:
            message = incoming.recv()
        except (EOFError, OSError):
            return  # the build was interrupted
        if message is None:
            return
        index, done[index], total[index] = message
        # Jobs that have not started yet are taken to be as long as the longest that has.
        longest = max(total)
        progress(sum(done), sum(value or longest for value in total))
