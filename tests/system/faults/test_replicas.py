"""Devices that hang and die under load while others hold copies of what they hold: real processes over Zenoh."""

from __future__ import annotations

import contextlib
import signal

import pytest

from closed_loop import ClosedLoop
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from fleet_in_memory import some_images
from serving import serving
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

LONG_S = 120.0
DEVICES = ("dev-1", "dev-2", "dev-3")
DEADLINE_S = 30.0
"""Long, so that what is tested is the copies and not how busy this machine is."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("replicas") / "bundle", submodels=3, classes=6)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_no_answer_is_degraded_when_a_device_with_copies_hangs_or_dies(bundle, number):
    images = some_images(bundle, batch=8)
    expected = LocalPredictor(bundle).run(images).probabilities.max(axis=1)
    arguments = (bundle.path, "--local", "--replicas", 2, "--deadline-s", DEADLINE_S)
    with serving(*arguments) as served, Client(served.url) as client:
        eventually(lambda: client.health().without_copy == (), LONG_S)
        with contextlib.closing(ClosedLoop(served.url, images)) as load:
            load.more(200)
            served.devices["dev-2"].send_signal(number)
            load.more(400)
            device = client.fleet().devices[1]
            assert (device.online, device.submodels) == (False, ())
            health = client.health()
            assert health.status == "ready"
            assert 1 in health.without_copy
            asked = client.fleet().copies_asked
            assert asked.late + asked.ended > 0
            if number == signal.SIGSTOP:
                served.devices["dev-2"].resume()
                eventually(lambda: 1 in client.fleet().devices[1].submodels, LONG_S)
                load.more(200)
    assert load.errors == []
    for which, answer in load.answers:
        assert not answer.degraded
        assert answer.probability == pytest.approx(float(expected[which]), abs=1e-6)
