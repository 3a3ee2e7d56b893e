from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from edvit.builder.jobs.artifacts import LIBRARIES, Artifact, WorkFolder
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Job, Resumable, unkeyed
from edvit.errors import BuildError, ConfigError
from edvit.inputs.datasets.folder import WORK_LOCK


@dataclass(frozen=True)
class Write(Job):
    """Writes a text."""

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("torch",)

    epochs: int
    text: str = unkeyed()
    name: str = unkeyed()

    def run(self, folder, progress):
        if self.text is None:
            raise BuildError("no")
        (folder / "deep").mkdir()
        (folder / "deep" / self.name).write_text(self.text)
        return {"text": self.text}


@dataclass(frozen=True)
class Follow(Job):
    """Reads what another job wrote."""

    STAGE: ClassVar[str] = "teacher"
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    base: Artifact

    def run(self, folder, progress):
        return {}


@dataclass(frozen=True)
class Count(Resumable):
    """Counts to five, a checkpoint at each; killed, or failing, after so many steps."""

    STAGE: ClassVar[str] = "recover"
    LIBRARIES: ClassVar[tuple[str, ...]] = ()

    name: str
    stop_at: int = unkeyed()
    error: type[BaseException] = unkeyed()

    def run_from(self, resume, folder, progress):
        state = None if resume is None else resume.load()
        first = 0 if state is None else state["done"]
        for step in range(first, 5):
            if step == self.stop_at:
                raise self.error("stopped")
            if resume is not None:
                resume.save({}, step + 1, 5)
        return {"from": first}


def job(text="", *, epochs=3, name="weights"):
    return Write(epochs, text, name)


def make(work, wanted):
    """As a build does: what is done is found."""
    return work.find(wanted) or work.make(wanted, lambda done, total: None)


JOB = job()


def visible(work):
    return sorted(path.name for path in work.root.iterdir() if not path.name.startswith("."))


def test_a_result_is_found_again(tmp_path):
    work = WorkFolder(tmp_path / "a" / "work")
    assert work.find(JOB) is None
    made = make(work, job("one"))
    assert made.note == {"text": "one"}
    assert (made.folder / "deep" / "weights").read_text() == "one"
    assert made == work.find(JOB) == WorkFolder(work.root).find(JOB) == Artifact.read(made.folder)


def test_a_result_says_what_made_it(tmp_path):
    made = make(WorkFolder(tmp_path), job("one"))
    done = json.loads((made.folder / "done.json").read_text())
    assert done["inputs"] == JOB.inputs()
    assert set(done["versions"]) == set(LIBRARIES)
    assert done["versions"]["torch"] == importlib.metadata.version("torch")


def test_other_settings_are_another_result(tmp_path):
    work = WorkFolder(tmp_path)
    made = [make(work, job(str(epochs), epochs=epochs)) for epochs in (1, 2)]
    assert made[0].folder != made[1].folder
    assert len(visible(work)) == 2


def test_the_digest_is_of_the_content_alone(tmp_path):
    one = make(WorkFolder(tmp_path / "1"), job("same"))
    assert one.digest == make(WorkFolder(tmp_path / "2"), job("same", epochs=9)).digest
    assert one.digest != make(WorkFolder(tmp_path / "3"), job("else")).digest
    assert one.digest != make(WorkFolder(tmp_path / "4"), job("same", name="other")).digest, "it covers names"


def test_a_changed_result_redoes_what_depends_on_it(tmp_path):
    before = make(WorkFolder(tmp_path), job("unchanged"))
    followed = make(WorkFolder(tmp_path), Follow(before))
    forced = WorkFolder(tmp_path, frozenset({"base"}))
    assert forced.find(Follow(make(forced, job("unchanged")))) == followed, "redone, with the same result"
    changed = make(WorkFolder(tmp_path, frozenset({"base"})), job("changed"))
    assert WorkFolder(tmp_path).find(Follow(changed)) is None


def test_force_redoes_a_stage_once_in_a_build(tmp_path):
    before = make(WorkFolder(tmp_path), job("old"))
    followed = make(WorkFolder(tmp_path), Follow(before))
    work = WorkFolder(tmp_path, frozenset({"base"}))
    assert (work.forces("base"), work.forces("teacher")) == (True, False)
    assert work.find(JOB) is None
    after = make(work, job("new"))
    assert (after.folder, after.note) == (before.folder, {"text": "new"})
    assert work.find(JOB) == after
    assert work.find(Follow(before)) == followed


def test_a_job_that_fails_leaves_nothing(tmp_path):
    work = WorkFolder(tmp_path)
    with pytest.raises(BuildError):
        make(work, job(None))
    assert list(tmp_path.iterdir()) == []


def test_a_discarded_scratch_folder_is_gone_and_a_committed_one_is_not(tmp_path):
    work = WorkFolder(tmp_path)
    for commit in (False, True):
        scratch = work.begin(JOB)
        (scratch / "x").write_text("x")
        made = work.commit(JOB, scratch, {}) if commit else None
        work.discard(scratch)
        assert not scratch.exists()
        assert work.find(JOB) == made


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"[]", b"null"])
def test_a_damaged_note_reads_as_not_done(tmp_path, damage):
    work = WorkFolder(tmp_path)
    made = make(work, job("x"))
    (made.folder / "done.json").write_bytes(damage)
    assert work.find(JOB) is None
    assert make(work, job("again")).note == {"text": "again"}


def hidden(work):
    return sorted(path.name for path in work.root.iterdir() if path.name.startswith("."))


def stopped(work, name="a", step=3, error=KeyboardInterrupt):
    with pytest.raises(error):
        work.make(Count(name, step, error), None)


def test_an_interrupted_job_goes_on_from_its_checkpoint_and_leaves_none(tmp_path):
    work, again = WorkFolder(tmp_path), Count("a", None, None)
    assert work.steps_done(again) is None
    stopped(work)
    assert hidden(work) == [f".unfinished-recover-{again.key}"]
    assert work.steps_done(again) == (3, 5)
    assert work.steps_done(Count("b", None, None)) is None
    assert work.make(again, None).note == {"from": 3}
    assert hidden(work) == []


def test_a_checkpoint_of_another_job_is_not_taken(tmp_path):
    work = WorkFolder(tmp_path)
    stopped(work)
    left = next(tmp_path.glob(".unfinished-*"))
    other = Count("b", None, None)
    left.rename(tmp_path / f".unfinished-recover-{other.key}")
    assert work.make(other, None).note == {"from": 0}


def test_a_stage_that_is_forced_begins_anew(tmp_path):
    stopped(WorkFolder(tmp_path))
    work, again = WorkFolder(tmp_path, frozenset({"recover"})), Count("a", None, None)
    assert work.steps_done(again) is None
    assert work.make(again, None).note == {"from": 0}


def test_a_job_that_fails_leaves_no_checkpoint(tmp_path):
    work = WorkFolder(tmp_path)
    stopped(work, error=BuildError)
    assert hidden(work) == []


def test_a_build_that_ends_well_removes_checkpoints_of_other_settings(tmp_path):
    work = WorkFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), work.locked():
        stopped(work, "mine")
        raise KeyboardInterrupt
    assert len(list(tmp_path.glob(".unfinished-*"))) == 1, "it is what the next build goes on from"
    with work.locked():
        pass
    assert hidden(work) == [".lock"]


def test_a_checkpoint_that_another_attempt_holds_is_left_to_it(tmp_path):
    """On a Ray cluster a job is run again where its node is lost, and its first attempt may live on."""
    work, again = WorkFolder(tmp_path), Count("a", None, None)
    stopped(work)
    left = next(tmp_path.glob(".unfinished-*"))
    with (left / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert work.make(again, None).note == {"from": 0}
        assert Checkpoint.steps(left) == (3, 5)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from edvit.builder.jobs.artifacts import WorkFolder
from test_artifacts import Write

class Slow(Write):
    def run(self, folder, progress):
        (folder / "half").write_text("x" * 100)
        print("filling", flush=True)
        time.sleep(60)

work = WorkFolder(Path(sys.argv[1]))
with work.locked():
    work.make(Slow(3, "", ""), None)
"""


def test_a_killed_fill_reads_as_not_done_and_is_cleared_away(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"filling\n"
        work = WorkFolder(tmp_path)
        with pytest.raises(ConfigError, match="in use by another build"), work.locked():
            pass
        assert len(list(tmp_path.rglob("half"))) == 1, "the running build's scratch must not be touched"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert work.find(JOB) is None
    assert visible(work) == []
    with work.locked():
        assert list(tmp_path.rglob("half")) == []
        make(work, job("whole"))
    assert visible(work) == [f"base-{JOB.key}"]


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), WorkFolder(tmp_path).locked():
            raise KeyError


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "work").write_text("mine")
    with pytest.raises(ConfigError, match="work: cannot be made") as caught:
        WorkFolder(tmp_path / "work")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "work").read_text() == "mine"


@pytest.mark.parametrize(
    ("of_files", "said"),
    [
        ((), r"\(the work folder is .*work\)"),
        (("/there/manifest.json",), r"\(writing /there/manifest\.json\)"),
        (("/here/submodel.onnx", None, "/there/submodel-0.onnx"), r"\(writing /there/submodel-0\.onnx\)"),
    ],
    ids=["unknown", "file", "copy"],
)
def test_a_full_disk_is_named_by_what_was_written(tmp_path, of_files, said):
    """The bundle may be on another disk than the work folder."""
    work = WorkFolder(tmp_path / "work")
    with pytest.raises(BuildError, match=f"no space left on the disk {said}; free some"), work.locked():
        raise OSError(errno.ENOSPC, "No space left on device", *of_files)


def test_readers_of_data_know_a_work_folder(tmp_path):
    with WorkFolder(tmp_path).locked():
        assert (tmp_path / WORK_LOCK).is_file()
    assert (tmp_path / WORK_LOCK).is_file()
