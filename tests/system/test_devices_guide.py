"""docs/guide/devices.md: its commands from keys to an answer as they stand, in their order, in folders of a test."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from edvit.fleet import Device, Fleet
from free_port import free_port
from serving import serving
from shell_words import shell, shims
from tiny_bundle import write_tiny_bundle
from waiting import eventually

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "devices.md").read_text()
LINES = re.findall(r"^    (\S.+)$", PAGE, re.MULTILINE)

NOT_HERE = (
    "sudo apt",
    "sudo timedatectl",
    "make wheel",
    "sudo python3 -m venv",
    "sudo /opt/edvit/bin/pip",
    "sudo useradd",
    "sudo systemctl daemon-reload",
    "sudo systemctl restart",
    "journalctl",
    "systemctl",
)
"""What needs a fresh system, root or systemd; tests/deploy has the installation of the wheel."""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def unit_command(folder, name):
    """The words of the device's unit with the settings that were copied, as systemd makes them."""
    unit = (folder / "etc/systemd/system/edvit-device@.service").read_text()
    lines = (folder / "etc/edvit/device.env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    (line,) = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    line = line.replace("%i", name).replace("${EDVIT_FLEET}", values["EDVIT_FLEET"])
    return shlex.split(line.replace("$EDVIT_DEVICE_OPTIONS", values["EDVIT_DEVICE_OPTIONS"]))


def test_the_guides_commands_from_keys_to_an_answer(tmp_path, monkeypatch):
    fleet = Fleet(name="shelf", devices=(Device.model_validate({"name": "pi-1"}),))
    write_tiny_bundle(tmp_path / "parts-bundle", submodels=1, classes=4, fleet=fleet)
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.jpg")
    shims(tmp_path / "bin")
    program(tmp_path / "bin" / "sudo", '[ "$1" = -u ] && shift 2; exec "$@"')
    program(tmp_path / "opt/edvit/bin/edvit", f'exec "{sys.executable}" -m edvit "$@"')
    for made in ("usr/local/bin", "var/lib/edvit", "etc/systemd/system"):
        (tmp_path / made).mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    keys = tmp_path / "config" / "edvit" / "keys"
    listen = f"tls/127.0.0.1:{free_port()}"
    url = ""

    def here(line):
        line = re.sub(r"/(opt|usr/local|var/lib|var/cache|etc)/", lambda match: f"{tmp_path}{match[0]}", line)
        line = line.replace("--owner edvit ", "").replace("tls/192.168.1.10:7447", listen)
        return re.sub(r"https://[\d.:]+", url, line)

    shell("edvit keys init", tmp_path, environment)
    environment |= {"EDVIT_CA": str(keys / "ca.crt")}
    environment["EDVIT_TOKEN"] = shell("edvit keys token me --scope predict,watch", tmp_path, environment).strip()
    ran = []
    with contextlib.ExitStack() as stack:
        for line in LINES:
            if line.startswith(NOT_HERE):
                continue
            ran.append(line.partition(" --")[0])
            if line.startswith("scp "):
                for name in shlex.split(line)[2:-1]:  # the wheel is not made here
                    shutil.copy(ROOT / name, tmp_path)
            elif line.startswith("edvit serve"):
                words = shlex.split(line)[2:]
                url = stack.enter_context(serving(tmp_path / words[0], *words[1:], "--listen", listen)).url
            elif line.startswith("sudo systemctl enable"):
                env = tmp_path / "etc/edvit/device.env"
                env.write_text(here(env.read_text()))
                name = line.rpartition("@")[2]
                command = [here(word) for word in unit_command(tmp_path, name)]
                device = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
                stack.callback(device.wait)
                stack.callback(device.kill)
            elif line.startswith("edvit predict"):

                def answer(line=line):
                    with contextlib.suppress(AssertionError):
                        return shell(here(line), tmp_path, environment)

                assert "class-" in eventually(answer, 200)
            else:
                said = shell(here(line), tmp_path, environment)
                if "doctor" in line:
                    assert "✓ gateway" in said
    assert [word for word in ("doctor", "serve", "predict", "systemctl", "keys request") if word not in str(ran)] == []
    assert list((tmp_path / "var/cache/edvit/pi-1").glob("*.onnx"))
