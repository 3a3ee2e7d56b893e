"""docs/guide/keys.md: its commands as they stand, in their order, on a tiny bundle."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edvit.fleet import Device, Fleet
from free_port import free_port
from serving import serving
from shell_words import shell, shims
from tiny_bundle import write_tiny_bundle
from waiting import eventually

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "keys.md").read_text()
LINES = re.findall(r"^    ((?:edvit|ssh) .+)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    fleet = Fleet(name="shelf", devices=(Device.model_validate({"name": "pi-1"}),))
    write_tiny_bundle(tmp_path / "parts-bundle", submodels=1, classes=4, fleet=fleet)
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.jpg")
    shims(tmp_path / "bin")
    return tmp_path


def test_the_guides_commands_from_keys_to_an_answer_and_back(folder, monkeypatch):
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("XDG_CONFIG_HOME", environment["XDG_CONFIG_HOME"])
    listen = f"tls/127.0.0.1:{free_port()}"
    tokens = {}
    with contextlib.ExitStack() as stack:
        for line in LINES:
            words = shlex.split(line)[1:]
            if words[0] == "serve":
                url = stack.enter_context(serving(folder / words[1], *words[2:], "--listen", listen)).url
            elif words[0] == "device":
                words = [listen if word.startswith("tls/") else word for word in words]
                command = [sys.executable, "-m", "edvit", *words, "--cache", str(folder / "cache")]
                device = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
                stack.callback(device.wait)
                stack.callback(device.kill)
            elif words[0] == "predict":
                (folder / "ca.crt").write_bytes((folder / "config" / "edvit" / "keys" / "ca.crt").read_bytes())
                asked = re.sub(r"https://[\d.:]+", url, line)

                def answer(line=asked):
                    with contextlib.suppress(AssertionError):
                        return shell(line, folder, {**environment, "EDVIT_TOKEN": tokens["camera"]})

                assert "class-" in eventually(answer, 200)
            elif words[0] != "evaluate":  # which needs a data set; tests/system/test_readme.py has it
                said = shell(line, folder, environment)
                if words[:2] == ["keys", "token"]:
                    tokens[words[2]] = said.strip()
    assert {"serve", "device", "predict"} <= {line.split()[1] for line in LINES}
    assert "revoked" in shell("edvit keys list", folder, environment)
    assert "camera" not in shell("edvit keys list", folder, environment)
