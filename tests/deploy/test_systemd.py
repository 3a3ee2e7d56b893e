"""deploy/systemd: what systemd says of the units, and whether their commands are ones that edvit takes and can run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import httpx
import numpy as np
import pytest

from edvit.cli.commands import app
from edvit.fleet import Device, Fleet
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.keys import authority, tokens
from free_port import free_port
from keyed_fleet import join
from tiny_bundle import write_tiny_bundle
from waiting import eventually

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
NEWER = {"RestartSteps": 254, "RestartMaxDelaySec": 254}
"""Settings that an older systemd ignores, and the version that knows them."""

MOST_EXPOSURE = 20
"""Tenths of what `systemd-analyze security` counts, from 0 (locked up) to 100."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def settings(unit, section="Service"):
    """The settings of a section, each with its values in their order."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            inside = line == f"[{section}]"
        elif inside and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def environment(unit, example=True):
    """What the unit is started with: its own settings, then those of the example of its environment file."""
    found = dict(word.split("=", 1) for value in settings(unit)["Environment"] for word in shlex.split(value))
    if example:
        (named,) = settings(unit)["EnvironmentFile"]
        lines = (FOLDER / f"{Path(named).name}.example").read_text().splitlines()
        found |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return found


def command(unit, values, instance="pi-1"):
    """The words of ExecStart as systemd makes them: `${NAME}` is one word, `$NAME` as many as it has."""
    (line,) = settings(unit)["ExecStart"]
    words = []
    for word in shlex.split(line.replace("%i", instance)):
        if re.fullmatch(r"\$\w+", word):
            words += shlex.split(values.get(word[1:], ""))
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], word))
    return words


def test_there_are_units():
    assert [unit.name for unit in UNITS] == ["edvit-device@.service", "edvit-gateway.service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say(unit, tmp_path):
    program = tmp_path / "edvit"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/edvit/bin/edvit", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    version = int(
        re.search(r"\d+", subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout)[0]
    )
    excused = [name for name, since in NEWER.items() if version < since]
    said = [line for line in done.stderr.splitlines() if not any(f"'{name}'" in line for name in excused)]
    assert (done.returncode, said) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_service_that_is_taken_over_can_do_little(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("example", [True, False], ids=["example", "plain"])
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_edvit_takes_the_command(unit, example):
    words = command(unit, environment(unit, example))
    assert words[0] == "/opt/edvit/bin/edvit"
    called, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert called.__name__ == words[1]
    assert bound.arguments["logs"].log_format == "json"
    if called.__name__ == "device":
        assert bound.arguments["name"] == "pi-1"
        assert bound.arguments["fleet"] == ("shelf" if example else "local")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_folders_of_the_command_are_those_that_systemd_makes(unit):
    made = settings(unit)
    own = [f"/var/lib/{made['StateDirectory'][0]}"] + [f"/var/cache/{name}" for name in made.get("CacheDirectory", ())]
    (line,) = made["ExecStart"]
    for path in re.findall(r"/var/\S+", line):
        assert any(path == folder or path.startswith(f"{folder}/") for folder in own), path


def allowed_calls():
    """The system calls that the units' filters leave."""

    def members(name):
        done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        words = {line.strip() for line in done.stdout.splitlines()[1:] if line.startswith("    ")}
        words = {word for word in words if not word.startswith("#")}
        groups = {word for word in words if word.startswith("@")}
        return (words - groups).union(*map(members, groups))

    filters = {tuple(settings(unit)["SystemCallFilter"]) for unit in UNITS}
    assert filters == {("@system-service", "~@privileged")}
    assert {settings(unit)["SystemCallErrorNumber"][0] for unit in UNITS} == {"EPERM"}
    return members("@system-service") - members("@privileged")


def has_seccomp():
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return sys.platform == "linux"


@needs_systemd
@pytest.mark.skipif(not has_seccomp(), reason="there is no libseccomp here")
def test_gateway_and_device_run_with_what_the_units_allow(tmp_path):
    """Their commands with other paths and ports, under the units' filter of system calls."""
    calls = tmp_path / "calls"
    calls.write_text("\n".join(sorted(allowed_calls())))
    fleet = Fleet(name="shelf", devices=(Device.model_validate({"name": "pi-1"}),))
    write_tiny_bundle(tmp_path / "lib" / "bundle", submodels=1, classes=4, fleet=fleet)
    keys, now = tmp_path / "lib" / "keys", datetime.now(timezone.utc)
    authority.make_authority(keys, ["127.0.0.1"], now)
    join(keys, keys, "pi-1", now=now)
    token = tokens.add_token(keys, "me", ["predict"], now)
    listen, port = f"tls/127.0.0.1:{free_port()}", free_port()
    device, gateway = UNITS

    def start(unit, **values):
        words = command(unit, environment(unit) | values)
        words = [word.replace("/var/lib/edvit", str(tmp_path / "lib")) for word in words[1:]]
        words = [word.replace("/var/cache/edvit", str(tmp_path / "cache")) for word in words]
        box = [sys.executable, str(Path(__file__).with_name("sandbox.py")), str(calls)]
        own = {**os.environ, "HOME": str(tmp_path / "lib"), "OMP_NUM_THREADS": "1"}
        log = stack.enter_context((tmp_path / f"{unit.name}.log").open("w"))
        process = subprocess.Popen([*box, sys.executable, "-m", "edvit", *words], env=own, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    with contextlib.ExitStack() as stack:
        serving = start(gateway, EDVIT_GATEWAY_OPTIONS=f"--listen {listen} --port {port}")
        running = start(device, EDVIT_DEVICE_OPTIONS=f"--connect {listen}")
        client = stack.enter_context(httpx.Client(verify=_trust(keys / "ca.crt"), timeout=60))

        def answer():
            for process, unit in ((serving, gateway), (running, device)):
                assert process.poll() is None, (tmp_path / f"{unit.name}.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.post(
                    f"https://127.0.0.1:{port}/predict",
                    content=to_npy(np.zeros((3, 16, 16), np.uint8)),
                    headers={"content-type": NPY, "authorization": f"Bearer {token}"},
                ).json()

        eventually(lambda: (said := answer()) is not None and "label" in said, 120)
        for process in (running, serving):
            process.terminate()
            assert process.wait(30) == 0


def _trust(ca):
    import ssl

    return ssl.create_default_context(cafile=ca)
