"""Standard output that cannot be written is one line, in a process of its own as Python flushes when it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiny_bundle import write_tiny_bundle

FULL = Path("/dev/full")


def edvit(stdout, *arguments):
    command = [sys.executable, "-m", "edvit", *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_is_one_line(tmp_path, flags):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with FULL.open("w") as full:
        done = edvit(full, "inspect", bundle.path, *flags)
    assert (done.returncode, done.stderr) == (1, "edvit: cannot write: No space left on device\n")


def test_a_reader_that_has_left_is_told_nothing(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        done = edvit(reader.stdin, "inspect", bundle.path)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_is_told_even_so(tmp_path):
    with FULL.open("w") as full:
        done = edvit(full, "inspect", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("edvit: ")
    assert done.stderr.count("\n") == 1
