from __future__ import annotations

import contextlib
import os

import pytest

from edvit.bundle import MANIFEST
from edvit.errors import DeployError
from edvit.runtime.deploy.folder import BundleFolder


def fill(folder, text):
    folder.mkdir()
    (folder / MANIFEST).write_text(text)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "bundle", "old")
    return BundleFolder(tmp_path / "bundle")


def names(folder):
    return sorted(path.name for path in folder.path.parent.iterdir())


def test_a_new_bundle_takes_the_place_and_the_old_one_is_kept_until_the_next(folder):
    for before, after in (("old", "new"), ("new", "newest")):
        with folder.receiving():
            (folder.incoming / MANIFEST).write_text(after)
            folder.take_place()
        assert (folder.path / MANIFEST).read_text() == after
        assert (folder.previous / MANIFEST).read_text() == before
        assert names(folder) == ["bundle", "bundle.previous"]


def test_a_link_stays_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to("bundle")
    linked = BundleFolder(tmp_path / "link")
    with linked.receiving():
        (linked.incoming / MANIFEST).write_text("new")
        linked.take_place()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / MANIFEST).read_text() == "new"


def test_what_fails_leaves_nothing(folder):
    with pytest.raises(ZeroDivisionError), folder.receiving():
        fill(folder.incoming / "part", "half")
        raise ZeroDivisionError
    assert names(folder) == ["bundle"]


def test_a_place_that_cannot_be_taken_leaves_the_old_one(folder):
    with folder.receiving():
        folder.incoming.rmdir()
        with pytest.raises(DeployError, match="cannot take its place"):
            folder.take_place()
    assert (folder.path / MANIFEST).read_text() == "old"
    assert names(folder) == ["bundle"]


def test_one_process_at_a_time(folder):
    with folder.receiving():
        (folder.incoming / MANIFEST).write_text("new")
        with pytest.raises(DeployError, match="another gateway takes over a new bundle there"), folder.receiving():
            pass
        BundleFolder(folder.path).recover()
        assert (folder.incoming / MANIFEST).read_text() == "new"


def test_something_else_at_the_previous_place_is_never_removed(folder):
    folder.previous.mkdir()
    (folder.previous / "photos").write_text("mine")
    with pytest.raises(DeployError, match="exists and is no bundle; move it away"), folder.receiving():
        pass
    assert (folder.previous / "photos").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_beside(folder):
    folder.path.parent.chmod(0o500)
    try:
        with pytest.raises(DeployError, match="cannot write beside its bundle"), folder.receiving():
            pass
    finally:
        folder.path.parent.chmod(0o700)


def test_a_disk_without_room(folder):
    folder.check_room(1000)
    with pytest.raises(DeployError, match=r"has 1,000,000,000,000\.0 MB, and the gateway's disk has room for"):
        folder.check_room(10**18)


def test_a_killed_transfer_is_cleaned_up(folder):
    fill(folder.incoming, "half")
    folder.recover()
    assert names(folder) == ["bundle"]


def test_a_process_that_was_killed_between_the_two_renames(folder):
    fill(folder.incoming, "new")
    folder.path.rename(folder.previous)
    folder.recover()
    assert (folder.path / MANIFEST).read_text() == "old"
    assert names(folder) == ["bundle"]


def test_nothing_is_taken_back_where_there_never_was_a_bundle(tmp_path):
    folder = BundleFolder(tmp_path / "nothing")
    folder.recover()
    folder.previous.mkdir()
    folder.recover()
    assert not folder.path.exists()
    with contextlib.suppress(DeployError), folder.receiving():
        raise AssertionError("there is nothing to deploy to")
