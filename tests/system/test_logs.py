"""The logs of a real gateway and a real device: one JSON object a line, and one request found in both."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading

import httpx
import numpy as np
import pytest

from device_processes import EDVIT, DeviceProcess
from edvit.runtime.http.body import NPY, to_npy
from free_port import free_endpoint
from tiny_bundle import write_tiny_bundle
from waiting import eventually

SECRET = "aGVsbG8-secret"


class Program:
    """A running command with the lines that it writes."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [*EDVIT, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.out, self.err = [], []
        for stream, into in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=self._read, args=(stream, into), daemon=True).start()

    @staticmethod
    def _read(stream, into):
        with stream:
            into.extend(stream)

    def events(self, name):
        return [line for line in map(json.loads, list(self.err)) if line["event"] == name]

    def end(self):
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def running(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=1, classes=4)
    endpoint = free_endpoint()
    with contextlib.ExitStack() as stack:
        gateway = Program("serve", bundle.path, "--port", 0, "--listen", endpoint, "--log-format", "json")
        stack.callback(gateway.process.wait)
        stack.callback(gateway.process.kill)
        arguments = ["--name", "dev-1", "--connect", endpoint, "--cache", tmp_path / "cache", "--threads", 1]
        device = DeviceProcess([*arguments, "--log-format", "json"])
        stack.callback(device.kill)
        eventually(lambda: any(line["state"].startswith("ready") for line in gateway.events("device")), 120)
        yield gateway, device, gateway.events("serving")[0]["url"]


def test_a_request_is_found_in_the_logs_of_gateway_and_device(running):
    gateway, device, url = running
    image = np.zeros((3, 16, 16), np.uint8)
    headers = {"content-type": NPY, "x-request-id": "camera-7", "authorization": f"Bearer {SECRET}"}
    answer = httpx.post(f"{url}/predict?token={SECRET}", content=to_npy(image), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "camera-7"
    (line,) = eventually(lambda: [line for line in gateway.events("request") if line["request"] == "camera-7"])
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/predict", 200, "127.0.0.1")
    assert (line["degraded"], line["missing"]) == (False, [])
    (wire,) = line["wire"]
    assert re.fullmatch("[0-9a-f]{16}", wire)

    def answered():
        found = [json.loads(text) for text in list(device.errors)]
        return [line for line in found if line.get("wire") == wire]

    (there,) = eventually(answered)
    assert (there["event"], there["device"], there["fleet"]) == ("inference", "dev-1", "local")
    assert (there["submodels"], there["outcome"]) == ([0], "answered")
    assert 0 <= there["seconds"] < line["seconds"]

    assert httpx.get(f"{url}/%1b%5b31mred%0aforged").status_code == 404
    assert gateway.end() == 0
    assert device.end() == 0
    assert gateway.out == device.lines == []
    for text in [*gateway.err, *device.errors]:
        assert isinstance(json.loads(text), dict)
        assert text.rstrip("\n").isprintable()
        assert text.isascii()
        assert SECRET not in text


def test_what_ends_a_program_is_an_event_of_its_log(tmp_path):
    (tmp_path / "file").write_text("")
    words = ["device", "--name", "pi-1", "--connect", free_endpoint(), "--cache", tmp_path / "file" / "cache"]
    done = subprocess.run([*EDVIT, *map(str, words), "--log-format", "json"], capture_output=True, text=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, done.stdout, line["level"], line["code"]) == (2, "", "error", "bad-config")
    assert "choose another --cache" in line["event"]
