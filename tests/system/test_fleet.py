"""A gateway, and devices that are started by hand with the commands it prints."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
from itertools import pairwise

import httpx
import numpy as np
import pytest

from edvit.fleet import Device, Fleet
from edvit.runtime.http.client import Client
from edvit.runtime.local import free_port
from edvit.runtime.predictor import LocalPredictor
from serving import EDVIT, run, serving, wait_for
from tiny_bundle import write_tiny_bundle

IMAGE = np.full((3, 16, 16), 120, dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path):
    # A name of its own: gateways of tests that run beside this one must not find these devices.
    fleet = Fleet(
        name=f"shelf-{os.getpid()}", devices=tuple(Device.model_validate({"name": n}) for n in ("pi-1", "pi-2"))
    )
    return write_tiny_bundle(tmp_path / "bundle", fleet=fleet)


@pytest.fixture
def start(tmp_path):
    """Starts a command line that the gateway printed."""
    with contextlib.ExitStack() as stack:

        def start_device(line):
            program, *arguments = shlex.split(line)
            assert program == "edvit"
            process = subprocess.Popen(
                [*EDVIT, *arguments, "--cache", str(tmp_path / "cache")], stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start_device


def test_what_happens_to_a_device_is_said_once(bundle, start):
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    fleet = bundle.manifest.plan.fleet.name
    with serving(bundle.path, "--listen", endpoint) as served:
        device = f"edvit device --fleet {fleet} --connect {endpoint}"
        small, strange = start(f"{device} --name pi-1 --memory-mb 0.001"), start(f"{device} --name pi-9")
        said = _read_until(served, "sub-models need", "pi-9: ")
        small.kill(), strange.kill()
        said += _read_until(served, "pi-1: gone", "pi-9: gone")
        served.stop()
        rest = served.process.stdout.read().splitlines()
    for event in (
        r"pi-1: the planned sub-models need [^:]*",
        r"pi-9: not a device of this bundle \(it has pi-1, pi-2\)",
        r"pi-1: gone",
        r"pi-9: gone",
    ):
        assert any(re.fullmatch(rf"[\d:]+  {event}", line) for line in said), "\n".join(said)
    # Where a link breaks on a busy machine a device is gone and here again; no line is said twice in a row.
    for device in ("pi-1", "pi-9"):
        lines = [line.split("  ", 1)[1] for line in said if f"  {device}: " in line and line[:1].isdigit()]
        assert all(one != other for one, other in pairwise(lines)), "\n".join(said)
    # A signal that comes while a line is written may have it written again.
    assert set(rest) <= {said[-1]}, "\n".join(rest)


def _read_until(served, *texts):
    """Lines of what it prints, until each of `texts` has come."""
    said = []
    while not all(any(text in line for line in said) for text in texts):
        said.append(next(iter(served.process.stdout)).rstrip("\n"))
    return said


def test_the_printed_commands_bring_the_fleet_up(bundle, start):
    with serving(bundle.path, "--listen", f"tcp/127.0.0.1:{free_port()}") as served, Client(served.url) as client:
        assert client.health().status == "not-ready"
        assert httpx.get(f"{served.url}/health").status_code == 503
        response = httpx.post(f"{served.url}/predict", files={"file": ("x", b"")})
        assert response.status_code == 400

        lines = iter(served.process.stdout)
        assert any("On each device, type:" in line for line in lines)
        first, second = start(next(lines)), start(next(lines))
        assert wait_for(lambda: client.health().status == "ready")
        answer = client.predict_array(IMAGE)
        assert answer.index == LocalPredictor(bundle).predict(IMAGE[None]).indices[0]
        assert any("ready with sub-model" in line for line in lines)

        second.send_signal(signal.SIGTERM)
        assert second.wait(10) == 0
        assert wait_for(lambda: client.health().status == "degraded")
        assert client.predict_array(IMAGE).missing == (1,)
        code, _ = served.stop()
        assert code == 0
        assert first.poll() is None  # devices outlive a gateway, and wait for the next


def test_a_new_gateway_finds_the_devices_of_the_old_one(bundle, start):
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    for name in ("pi-1", "pi-2"):
        start(f"edvit device --name {name} --fleet {bundle.manifest.plan.fleet.name} --connect {endpoint}")
    for _ in range(2):
        with serving(bundle.path, "--listen", endpoint) as served, Client(served.url) as client:
            assert wait_for(lambda: client.health().status == "ready")
            assert not client.predict_array(IMAGE).degraded


def test_an_endpoint_in_use(bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("serve", bundle.path, "--port", "0", "--listen", f"tcp/127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("endpoint", ["7447", "tcp/", "http://0.0.0.0:7447", "tcp/0.0.0.0:99999"])
def test_an_endpoint_that_is_none(bundle, endpoint):
    done = run("serve", bundle.path, "--port", "0", "--listen", endpoint)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
