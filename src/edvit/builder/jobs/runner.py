"""Runs jobs: finds what an earlier build has finished, makes the rest, and keeps each result as soon as it is whole."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edvit.builder.jobs.artifacts import Artifact, WorkFolder
from edvit.builder.jobs.job import Job
from edvit.builder.jobs.parallel import Pool, Progress
from edvit.builder.jobs.progress import Reporter
from edvit.errors import BuildError


@dataclass(frozen=True)
class Runner:
    """Where results are kept, where jobs run, and whom to tell."""

    work: WorkFolder
    pool: Pool
    report: Reporter
    _made: list[Job] = field(default_factory=list, init=False)

    def made_any(self) -> bool:
        """Whether any job ran since this was last asked; otherwise every result was kept from an earlier build."""
        made = bool(self._made)
        self._made.clear()
        return made

    def make(self, job: Job, text: str, *, line: str | None = None) -> Artifact:
        """The job's result; it runs in this process if it is not done yet.

        Args:
            text: what the progress bar says is being done.
            line: name of the console's line; the job's stage by default.
        """
        found = self.work.find(job)
        if found is not None:
            return found
        self._made.append(job)
        self._say_resumed([job], line or job.STAGE)
        with self.report.bar(line or job.STAGE, text) as bar:
            return self.work.make(job, bar)

    def make_all(self, jobs: Sequence[Job], text: str, *, line: str | None = None) -> tuple[Artifact, ...]:
        """The jobs' results, in their order; what is not done yet runs in the pool, several at a time.

        Args:
            text: what the progress bar says is being done.
            line: name of the console's line; the first job's stage by default.
        """
        keys = [job.key for job in jobs]
        # By key: two sub-models may be the same to the last bit, and are then made once.
        by_key = dict(zip(keys, jobs, strict=True))
        found = {key: self.work.find(job) for key, job in by_key.items()}
        todo = {key: job for key, job in by_key.items() if found[key] is None}
        self._made.extend(todo.values())
        self._say_resumed(list(todo.values()), line or jobs[0].STAGE)
        begun: list[_Attempt] = []
        with self.report.bar(line or jobs[0].STAGE, text) as bar:
            try:
                for key, job in todo.items():  # within the block: Ctrl-C may come while they are made
                    begun.append(_Attempt(self.work, job, key, self.work.begin(job)))
                made = self.pool.run(_attempt, begun, progress=bar)
            finally:
                for attempt in begun:
                    self.work.discard(attempt.scratch)
        done = {**found, **dict(zip(todo, made, strict=True))}
        return tuple(artifact for key in keys if (artifact := done[key]) is not None)

    def _say_resumed(self, jobs: Sequence[Job], line: str) -> None:
        """From which step each job goes on that a killed build had begun."""
        steps = [found for job in jobs if (found := self.work.steps_done(job)) is not None]
        if steps:
            places = "; ".join(f"step {done:,} of {total:,}" for done, total in steps)
            self.report.note(line, f"resumed from {places}")


@dataclass(frozen=True)
class _Attempt:
    work: WorkFolder
    job: Job
    key: str
    scratch: Path


def _attempt(attempt: _Attempt, progress: Progress) -> Artifact:
    """Run a job and commit its result in the same process.

    Every attempt fills a folder of its own: where a job is run again because its node was lost, the first may live on.
    """
    if attempt.job.key != attempt.key:
        libraries = ", ".join(attempt.job.LIBRARIES)
        raise BuildError(f"a node has other versions than this machine of {libraries}; install the same on all")
    folder = Path(tempfile.mkdtemp(dir=attempt.scratch))
    return attempt.work.run(attempt.job, folder, progress)
