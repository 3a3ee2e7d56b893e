"""Stages that are made by independent jobs, several at a time, each kept as soon as it is finished."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edvit.builder.jobs import parallel
from edvit.builder.jobs.artifacts import Artifact, WorkFolder


def run_stages(
    work: WorkFolder,
    run: Callable[[Any, parallel.Progress], dict[str, Any]],
    jobs: Sequence[Any],
    *,
    pool: parallel.Pool,
    progress: parallel.Progress,
) -> tuple[Artifact, ...]:
    """The results of the jobs' stages, in their order; what an earlier build has finished is not run again.

    Args:
        run: fills `job.scratch` and returns what to note beside the result; a module-level function.
        jobs: dataclasses with a `stage` and a `scratch`, which is set here.
        pool: where they run; all of it has to see the work folder.
    """
    found = {job.stage.key: work.find(job.stage) for job in jobs}
    # By key: two sub-models may be the same to the last bit, and are then made once.
    todo = {job.stage.key: job for job in jobs if found[job.stage.key] is None}
    begun: list[Any] = []
    try:
        for job in todo.values():  # within the block: Ctrl-C may come while they are made
            begun.append(replace(job, scratch=work.begin(job.stage)))
        made = pool.run(_Committed(work, run), begun, progress=progress)
    finally:
        for job in begun:
            work.discard(job.scratch)
    done = {**found, **dict(zip(todo, made, strict=True))}
    return tuple(done[job.stage.key] for job in jobs)


@dataclass(frozen=True)
class _Committed:
    """Runs a job and commits its stage in the same process.

    Every attempt fills a folder of its own: where a job is run again because its node was lost, that may live on.
    """

    work: WorkFolder
    run: Callable[[Any, parallel.Progress], dict[str, Any]]

    def __call__(self, job: Any, progress: parallel.Progress) -> Artifact:
        attempt = Path(tempfile.mkdtemp(dir=job.scratch))
        return self.work.commit(job.stage, attempt, self.run(replace(job, scratch=attempt), progress))
