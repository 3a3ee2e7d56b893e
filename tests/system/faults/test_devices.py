"""Devices that hang, die and come back under load, and gateways that meet: real processes over Zenoh on loopback."""

from __future__ import annotations

import contextlib
import signal
import threading

import numpy as np
import pytest

from closed_loop import ClosedLoop
from device_processes import DeviceProcess, process_fleet
from edvit.errors import FleetTakenError
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.lease import SAME_AGE_S
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.topics import ALIVE
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from fleet_in_memory import some_images
from free_port import free_endpoint
from serving import serving
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

LONG_S = 120.0
DEVICES = ("dev-1", "dev-2", "dev-3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("faults") / "bundle", submodels=3, classes=6)


@pytest.fixture(scope="module")
def local(bundle):
    return LocalPredictor(bundle)


@pytest.fixture
def fleet(bundle, tmp_path):
    with process_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_no_request_is_lost_or_wrong_when_a_device_hangs_or_dies(bundle, local, name, number):
    """The device stays away until hundreds of answers have come, so none of them has waited for it."""
    images = some_images(bundle, batch=8)
    gone = DEVICES.index(name)
    expected = {absent: local.run(images, absent=absent).probabilities.max(axis=1) for absent in ((), (gone,))}
    with serving(bundle.path, "--local") as served, contextlib.closing(ClosedLoop(served.url, images)) as load:
        load.more(200)
        served.devices[name].send_signal(number)
        load.more(200, lambda answer: answer.degraded)
        with Client(served.url) as client:
            assert client.health().status == "degraded"
            assert client.health().missing == (gone,)
            device = client.fleet().devices[gone]
            assert (device.online, device.submodels) == (False, ())
            assert device.state in ("silent", "offline")
        if number == signal.SIGSTOP:
            served.devices[name].resume()
            load.more(200, lambda answer: not answer.degraded)
            with Client(served.url) as client:
                eventually(lambda: client.health().status == "ready", LONG_S)
    assert load.errors == []
    for which, answer in load.answers:
        assert answer.missing in ((), (gone,))
        assert answer.missing_classes == bundle.manifest.classes_of(answer.missing)
        assert answer.probability == pytest.approx(float(expected[answer.missing][which]), abs=1e-6)
        assert answer.timings.gather_ms <= 2000 or answer.degraded


def test_a_stopped_device_is_replaced_and_taken_back(fleet, bundle, local):
    """Its sub-model goes to a device with room after the grace time, and home again once it goes on."""
    images = some_images(bundle)
    expected = local.predict(images).logits.tobytes()
    processes = [fleet.device(name) for name in DEVICES]
    gateway = Gateway(bundle, fleet.transport(), mend_after_s=1.0)
    with contextlib.closing(gateway):
        gateway.wait_ready(LONG_S)
        processes[1].stop()
        eventually(lambda: 1 in gateway.predict(images).missing, LONG_S)
        eventually(lambda: not gateway.predict(images).degraded, LONG_S)
        assert gateway.predict(images).logits.tobytes() == expected
        assert gateway.devices()[1].submodels == ()
        processes[1].go_on()
        eventually(lambda: [device.submodels for device in gateway.devices()] == [(0,), (1,), (2,)], LONG_S)
        assert gateway.predict(images).logits.tobytes() == expected


def test_a_gateway_that_comes_back_elsewhere_is_found(bundle, tmp_path):
    first, second = free_endpoint(), free_endpoint()
    with contextlib.ExitStack() as stack:
        for name in DEVICES:
            arguments = ["--name", name, "--fleet", "local", "--cache", tmp_path / "cache", "--threads", 1]
            device = DeviceProcess([*arguments, "--connect", first, "--connect", second])
            stack.callback(device.kill)
        for endpoint in (first, second):
            with (
                contextlib.closing(ZenohTransport(listen=[endpoint], scouting=False)) as transport,
                contextlib.closing(Gateway(bundle, transport)) as gateway,
            ):
                gateway.wait_ready(LONG_S)
                assert not gateway.predict(some_images(bundle)).degraded


def test_two_gateways_with_different_bundles(bundle, tmp_path):
    """They see each other only through the devices, which stay with the first."""
    other = write_tiny_bundle(tmp_path / "other", submodels=3, classes=6, seed=7)
    first, second = free_endpoint(), free_endpoint()
    with contextlib.ExitStack() as stack:
        for name in DEVICES:
            arguments = ["--name", name, "--fleet", "local", "--cache", tmp_path / "cache", "--threads", 1]
            device = DeviceProcess([*arguments, "--connect", first, "--connect", second])
            stack.callback(device.kill)
        here = stack.enter_context(contextlib.closing(ZenohTransport(listen=[first], scouting=False)))
        there = stack.enter_context(contextlib.closing(ZenohTransport(listen=[second], scouting=False)))
        one = Gateway(bundle, here)
        with contextlib.closing(one):
            one.wait_ready(LONG_S)
            two = stack.enter_context(contextlib.closing(Gateway(other, there)))
            eventually(lambda: all("another bundle" in (device.problem or "") for device in two.devices()), LONG_S)
            assert bundle.digest[:12] in two.devices()[0].problem
            assert not one.predict(some_images(bundle)).degraded
        two.wait_ready(LONG_S)
        assert not two.predict(some_images(other)).degraded


def test_two_gateways_that_see_each_other(fleet, bundle, tmp_path):
    """The second with another bundle is refused; with the same one it answers as well, and takes over."""
    other = write_tiny_bundle(tmp_path / "other", submodels=3, classes=6, seed=7)
    for name in DEVICES:
        fleet.device(name)
    with contextlib.ExitStack() as stack:
        here = fleet.transport()
        one = stack.enter_context(contextlib.closing(Gateway(bundle, here)))
        one.wait_ready(LONG_S)
        threading.Event().wait(2 * SAME_AGE_S)
        refused = stack.enter_context(contextlib.closing(Gateway(other, here)))

        def is_refused():
            try:
                refused.check_lease()
            except FleetTakenError as error:
                return bundle.digest[:12] in str(error)
            return False

        eventually(is_refused, LONG_S)
        standby = stack.enter_context(contextlib.closing(Gateway(bundle, here)))
        standby.wait_ready(LONG_S)
        for gateway in (one, standby):
            assert not gateway.predict(some_images(bundle)).degraded


def test_thousands_of_false_tokens_cost_nothing(fleet, bundle):
    for name in DEVICES:
        fleet.device(name)
    gateway = fleet.gateway()
    before = threading.active_count()
    with contextlib.closing(ZenohTransport(connect=[fleet.endpoint], scouting=False)) as strange:
        for i in range(2000):
            strange.announce(ALIVE.key(fleet="local", device=f"x{i}", instance=f"{i:016x}"))
        eventually(lambda: len(gateway.devices()) > 500, LONG_S)
        assert threading.active_count() <= before + 5
        assert np.array_equal(gateway.predict(some_images(bundle)).missing, ())
    eventually(lambda: len(gateway.devices()) == len(DEVICES), LONG_S)
