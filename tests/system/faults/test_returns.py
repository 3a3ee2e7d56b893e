"""The first question after a device's return, which in some versions of Zenoh reaches nobody, over loopback."""

from __future__ import annotations

import contextlib
import queue
import time

import pytest

from device_processes import process_fleet
from edvit.runtime.gateway.gather import AGAIN_S
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.transport import Reply
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from fleet_in_memory import some_images
from free_port import free_endpoint
from open_loop import LONG_S
from reference import Reference
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

RETURNS = 20


def answered(transport):
    """Whether a question is answered when it is asked, or when it is asked again as the gateway does."""
    for _ in range(2):
        replies = transport.ask("returns/key", Packet(b"{}", b""), deadline_s=LONG_S)
        if any(isinstance(reply, Reply) for reply in replies):
            return True
        time.sleep(AGAIN_S)
    return False


def test_a_question_as_soon_as_one_is_seen_to_be_back_is_answered_the_second_time_at_the_latest():
    endpoint, seen = free_endpoint(), queue.SimpleQueue()

    def answer(request):
        yield Reply("returns/key", Packet(b"{}", b"here"))

    with contextlib.closing(ZenohTransport(listen=[endpoint], scouting=False)) as asking:
        asking.watch("returns/alive", lambda key, alive: seen.put(alive))
        for _ in range(RETURNS):
            with contextlib.closing(ZenohTransport(connect=[endpoint], scouting=False)) as answering:
                answering.serve("returns/key", answer)
                answering.announce("returns/alive")
                assert seen.get(timeout=LONG_S) is True
                assert answered(asking)
            assert seen.get(timeout=LONG_S) is False


def test_the_first_prediction_after_a_return_is_whole(tmp_path):
    """Asked without a pause from the moment that the device is ready."""
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=2, classes=4)
    images = some_images(bundle)
    reference = Reference(bundle, images)
    with process_fleet(bundle, tmp_path / "cache") as fleet:
        fleet.device("dev-1")
        second = fleet.device("dev-2")
        gateway = fleet.gateway()
        for _ in range(3):
            second.kill()
            eventually(lambda: not gateway.is_ready(), LONG_S)
            second = fleet.device("dev-2")
            eventually(gateway.is_ready, LONG_S)
            answer = gateway.predict(images)
            assert not answer.degraded
            assert [reference.problem(i, one) for i, one in enumerate(answer.answers)] == [None, None]
