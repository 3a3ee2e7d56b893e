import shutil

import pytest


@pytest.fixture
def work(tiny_build, tmp_path):
    """A copy of the tiny build's work folder, to change."""
    shutil.copytree(tiny_build.work, tmp_path / "work")
    return tmp_path / "work"
