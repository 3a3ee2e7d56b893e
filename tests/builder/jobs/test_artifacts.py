from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.builder.jobs.artifacts import Stage, WorkFolder
from edvit.errors import BuildError, ConfigError

STAGE = Stage("base", {"epochs": 3, "classes": (0, 1)})


def fill(text):
    def write(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(text)
        return {"text": text}

    return write


def refuse(folder):
    raise AssertionError("done already")


def visible(work):
    return sorted(path.name for path in work.root.iterdir() if not path.name.startswith("."))


def test_a_stage_is_made_once(tmp_path):
    work = WorkFolder(tmp_path / "a" / "work")
    assert work.find(STAGE) is None
    made = work.make(STAGE, fill("one"))
    assert made.record() == {"text": "one"}
    assert (made.folder / "deep" / "weights").read_text() == "one"
    assert work.make(STAGE, refuse) == made == work.find(STAGE) == WorkFolder(work.root).find(STAGE)


def test_other_settings_are_another_stage(tmp_path):
    work = WorkFolder(tmp_path)
    made = [work.make(Stage("base", {"epochs": epochs}), fill(str(epochs))) for epochs in (1, 2)]
    assert made[0].folder != made[1].folder
    assert len(visible(work)) == 2


def test_the_digest_is_of_the_content_alone(tmp_path):
    one = WorkFolder(tmp_path / "1").make(STAGE, fill("same"))
    other = WorkFolder(tmp_path / "2").make(Stage("base", {"epochs": 9}), fill("same"))
    assert one.digest == other.digest
    for path in one.folder.rglob("*"):
        os.utime(path, (1, 1))
    assert WorkFolder(tmp_path / "1").make(STAGE, refuse).digest == one.digest
    assert WorkFolder(tmp_path / "3").make(STAGE, fill("else")).digest != one.digest


def test_the_digest_covers_names():
    def named(name):
        return lambda folder: (folder / name).write_text("same") and None

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as root:
        digests = {WorkFolder(Path(root) / name).make(STAGE, named(name)).digest for name in ("a", "b")}
    assert len(digests) == 2


def test_a_changed_result_redoes_what_depends_on_it(tmp_path):
    def downstream(work, calls):
        base = work.make(STAGE, fill("unchanged"))

        def make(folder):
            calls.append(base.digest)

        return work.make(Stage("teacher", {"base": base.digest}), make)

    calls = []
    downstream(WorkFolder(tmp_path), calls)
    downstream(WorkFolder(tmp_path, frozenset({"base"})), calls)  # redone, with the same result
    assert len(calls) == 1
    WorkFolder(tmp_path, frozenset({"base"})).make(STAGE, fill("changed"))
    calls_after = []

    def make(folder):
        calls_after.append(folder)

    base = WorkFolder(tmp_path).find(STAGE)
    WorkFolder(tmp_path).make(Stage("teacher", {"base": base.digest}), make)
    assert len(calls_after) == 1


def test_force_redoes_a_stage_once_in_a_build(tmp_path):
    before = WorkFolder(tmp_path).make(STAGE, fill("old"))
    work = WorkFolder(tmp_path, frozenset({"base"}))
    assert work.find(STAGE) is None
    after = work.make(STAGE, fill("new"))
    assert (after.folder, after.record()) == (before.folder, {"text": "new"})
    assert work.make(STAGE, refuse) == after
    other = Stage("other", {})
    WorkFolder(tmp_path).make(other, fill("kept"))
    assert work.make(other, refuse).record() == {"text": "kept"}


def test_a_stage_is_remade_though_it_is_done(tmp_path):
    before, work = WorkFolder(tmp_path).make(STAGE, fill("old")), WorkFolder(tmp_path, frozenset({"teacher"}))
    assert (work.forces("teacher"), work.forces("base")) == (True, False)
    after = work.remake(STAGE, fill("new"))
    assert (after.folder, after.record()) == (before.folder, {"text": "new"})
    assert work.find(STAGE) == after


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    work = WorkFolder(tmp_path)

    def fail(folder):
        (folder / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError):
        work.make(STAGE, fail)
    assert list(tmp_path.iterdir()) == []
    assert work.find(STAGE) is None


def test_a_discarded_scratch_folder_is_gone_and_a_committed_one_is_not(tmp_path):
    work = WorkFolder(tmp_path)
    for commit in (False, True):
        scratch = work.begin(STAGE)
        (scratch / "x").write_text("x")
        made = work.commit(STAGE, scratch) if commit else None
        work.discard(scratch)
        assert not scratch.exists()
        assert work.find(STAGE) == made


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"[]", b"null"])
def test_a_damaged_note_reads_as_not_done(tmp_path, damage):
    work = WorkFolder(tmp_path)
    made = work.make(STAGE, fill("x"))
    (made.folder / "done.json").write_bytes(damage)
    assert work.find(STAGE) is None
    assert work.make(STAGE, fill("again")).record() == {"text": "again"}


KILLED = """
import sys, time
from pathlib import Path
from edvit.builder.jobs.artifacts import Stage, WorkFolder

def fill(folder):
    (folder / "half").write_text("x" * 100)
    print("filling", flush=True)
    time.sleep(60)

work = WorkFolder(Path(sys.argv[1]))
with work.locked():
    work.make(Stage("base", {"epochs": 3, "classes": (0, 1)}), fill)
"""


def test_a_killed_fill_reads_as_not_done_and_is_cleared_away(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
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
    assert work.find(STAGE) is None
    assert visible(work) == []
    with work.locked():
        assert list(tmp_path.rglob("half")) == []
        work.make(STAGE, fill("whole"))
    assert visible(work) == [f"base-{STAGE.key}"]


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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
settings_of_a_stage = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(settings_of_a_stage, settings_of_a_stage)
def test_a_key_is_of_the_settings_in_any_order(one, other):
    again = dict(reversed(list(one.items())))
    assert Stage("base", one).key == Stage("base", again).key
    assert Stage("base", one).key != Stage("teacher", one).key
    import json

    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert Stage("base", one).key != Stage("base", other).key
