"""A whole service from Python, with real device processes."""

import time

import numpy as np
import psutil
import pytest

from edvit.errors import PortInUseError, UnavailableError
from edvit.fleet import Device, Fleet
from edvit.runtime.http.client import Client
from edvit.runtime.http.server import bind
from edvit.runtime.local import device_processes, free_port, last_line, serve_locally
from edvit.runtime.predictor import LocalPredictor
from serving import alive
from tiny_bundle import write_tiny_bundle


def test_serves_while_the_block_lasts(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    image = np.full((3, 16, 16), 50, dtype=np.uint8)
    with serve_locally(bundle) as service:
        devices = [psutil.Process(process.pid) for process in service.devices.values()]
        assert len(devices) == 2
        assert service.gateway.is_ready()
        with Client(service.url) as client:
            answer = client.predict_array(image)
    assert answer.index == LocalPredictor(bundle).predict(image[None]).indices[0]
    assert not any(map(alive, devices))


def test_an_error_in_the_block_ends_the_devices_too(tmp_path):
    devices = []
    with pytest.raises(ZeroDivisionError), serve_locally(write_tiny_bundle(tmp_path / "bundle")) as service:
        devices += [psutil.Process(process.pid) for process in service.devices.values()]
        _ = 1 / 0
    assert len(devices) == 2
    assert not any(map(alive, devices))


def test_only_devices_that_hold_something_are_started(tmp_path):
    fleet = Fleet(name="f", devices=tuple(Device.model_validate({"name": f"d{i}"}) for i in range(4)))
    with serve_locally(write_tiny_bundle(tmp_path / "bundle", fleet=fleet)) as service:
        assert list(service.devices) == ["d0", "d1"]


def test_a_device_that_refuses_says_why(tmp_path):
    device = Device.model_validate({"name": "small", "memory_mb": 0.001})
    bundle = write_tiny_bundle(tmp_path / "bundle", fleet=Fleet(name="f", devices=(device,)))
    with pytest.raises(UnavailableError, match=r"device small: .*the limit is"), serve_locally(bundle):
        pass


def test_a_port_in_use_starts_no_device(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    before = psutil.Process().children()
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError), serve_locally(bundle, port=port):
            pass
    assert psutil.Process().children() == before


def test_what_a_device_said_is_kept(tmp_path):
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    with device_processes(["a"], "f", endpoint, tmp_path) as devices:
        deadline = time.monotonic() + 20
        while "looking for the gateway" not in last_line(tmp_path, "a") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "a: started" in last_line(tmp_path, "a")
        assert devices["a"].poll() is None
    assert devices["a"].poll() is not None
