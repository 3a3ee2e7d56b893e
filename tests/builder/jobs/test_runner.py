from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from edvit.builder.jobs import job as job_module
from edvit.builder.jobs.job import Job
from edvit.builder.jobs.runner import _Attempt, _attempt
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
