"""What OpenMP itself says of its settings when it is loaded (`OMP_DISPLAY_ENV`)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CALL = "import edvit; edvit.build(data='nonsense', fleet=edvit.local_fleet(1), out='never')"
COMMANDS = {
    "build": ["-m", "edvit", "build", "--data", "nonsense", "--devices", "1", "-o", "never"],
    "api": ["-c", CALL],
}


def policy(command, folder, **set_by_user):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", **set_by_user}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert "nonsense" in done.stderr
    return [line.split("=")[1].strip() for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_threads_of_a_build_sleep_while_they_wait(tmp_path, command):
    assert policy(COMMANDS[command], tmp_path) == ["'PASSIVE'"]


def test_what_the_user_set_stays(tmp_path):
    assert policy(COMMANDS["build"], tmp_path, OMP_WAIT_POLICY="active") == ["'ACTIVE'"]
