from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rich.console import Console

from edvit.builder.jobs import job as job_module
from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.job import Job, Resumable
from edvit.builder.jobs.parallel import Processes
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner, _Attempt, _attempt
from edvit.errors import BuildError
from tiny_build import runner_of


@dataclass(frozen=True)
class Square(Job):
    """Writes a square and counts how often it ran."""

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("torch",)
    ran: ClassVar[list[int]] = []

    number: int

    def run(self, folder, progress):
        self.ran.append(self.number)
        (folder / "square").write_text(str(self.number**2))
        return {}


@dataclass(frozen=True)
class Stop(Resumable):
    """Is interrupted after a checkpoint; the next time it ends."""

    STAGE: ClassVar[str] = "recover"
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    number: int

    def run_from(self, resume, folder, progress):
        if resume.load() is None:
            resume.save({}, 1000 * self.number, 5000)
            raise KeyboardInterrupt
        return {}


def squares(artifacts):
    return [int((artifact.folder / "square").read_text()) for artifact in artifacts]


def test_results_come_in_the_order_of_the_jobs_and_are_made_once(tmp_path):
    runner = runner_of(tmp_path)
    Square.ran.clear()
    assert squares([runner.make(Square(2), "")]) == [4]
    assert squares(runner.make_all([Square(3), Square(2), Square(1), Square(3)], "")) == [9, 4, 1, 9]
    assert Square.ran == [2, 3, 1]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".scratch")] == []


def test_a_node_with_other_libraries_is_refused(tmp_path, monkeypatch):
    runner, job = runner_of(tmp_path), Square(2)
    attempt = _Attempt(runner.work, job, job.key, runner.work.begin(job))
    monkeypatch.setattr(job_module, "version_of", lambda name: "99.0")
    with pytest.raises(BuildError, match="other versions than this machine of torch"):
        _attempt(attempt, lambda done, total: None)


def test_it_says_whether_anything_was_made(tmp_path):
    runner = runner_of(tmp_path)
    assert not runner.made_any()
    runner.make(Square(2), "")
    assert (runner.made_any(), runner.made_any()) == (True, False)
    runner.make_all([Square(2), Square(2)], "")
    assert not runner.made_any(), "all was kept"
    runner.make_all([Square(2), Square(3)], "")
    assert runner.made_any()


def test_jobs_that_go_on_from_a_checkpoint_say_from_which_step(tmp_path):
    file = io.StringIO()
    runner = Runner(WorkFolder(tmp_path), Processes(1), Reporter(Console(file=file, width=60)))
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            runner.make(Stop(number), "")
    assert file.getvalue() == ""
    runner.make_all([Stop(1), Stop(2)], "")
    said = "  recover    resumed from step 1,000 of 5,000; step 2,000 of 5,000\n"
    assert file.getvalue() == said
