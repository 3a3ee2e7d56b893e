"""Commands of the documentation, run by a shell as they stand, with `ssh HOST` on this machine."""

from __future__ import annotations

import subprocess
import sys


def shims(folder):
    """Programs to be put first in PATH: `edvit`, and an `ssh` that runs its command with settings of that host."""
    folder.mkdir()
    programs = {
        "edvit": f'exec "{sys.executable}" -m edvit "$@"',
        "ssh": 'host="$1"; shift; XDG_CONFIG_HOME="$PWD/$host" exec "$@"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def shell(line, folder, environment):
    """Run a line in `folder`, with the programs of its `bin`; its standard output."""
    path = f"{folder / 'bin'}:{environment['PATH']}"
    command = ["bash", "-eo", "pipefail", "-c", line]
    done = subprocess.run(
        command, cwd=folder, env={**environment, "PATH": path}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout
