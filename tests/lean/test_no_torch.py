"""The run-time world in an environment that has nothing else: `make lean` makes one and runs this file in it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys

import pytest

import edvit.plan
import edvit.runtime

if importlib.util.find_spec("torch") is not None:
    pytest.skip("torch is installed here; `make lean` runs these where it is not", allow_module_level=True)

NEEDS_SERVE = {"edvit.runtime.http.app", "edvit.runtime.http.server", "edvit.runtime.service", "edvit.runtime.local"}
RUNTIME = [
    module.name
    for package in (edvit.runtime, edvit.plan)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    if module.name not in NEEDS_SERVE
]


def edvit_command(*words):
    return subprocess.run([sys.executable, "-m", "edvit", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", RUNTIME)
def test_every_module_of_the_run_time_world_imports(name):
    importlib.import_module(name)


@pytest.mark.parametrize(
    "name", ["device", "doctor", "inspect", "plan", "build", "serve", "predict", "evaluate", "demo"]
)
def test_every_command_explains_itself(name):
    done = edvit_command(name, "--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["build", "--devices", "2", "-o", "bundle"], "build"),
        (["demo"], "build"),
        (["plan", "--model", "deit_tiny_patch16_224", "--classes", "4", "--devices", "2"], "build"),
        (["predict", "http://127.0.0.1:1", __file__], "serve"),
    ],
)
def test_a_command_that_needs_more_says_what_to_install(words, extra):
    done = edvit_command(*words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install" in done.stderr
    assert f"edvit[{extra}" in done.stderr
