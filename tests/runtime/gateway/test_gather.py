"""One fan-out, over a transport that answers as it is told."""

from __future__ import annotations

import time

import numpy as np

from edvit.errors import UnavailableError
from edvit.runtime.gateway.gather import Expected, gather
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import InferReply, InferRequest, to_payload
from edvit.runtime.wire.topics import INFER
from edvit.runtime.wire.transport import Failure, Replies, Reply

IMAGES = np.zeros((1, 3, 4, 4), np.uint8)
EXPECTED = {0: Expected("dev-1", 2), 1: Expected("dev-2", 2)}
NAMES = {entry.device: submodel for submodel, entry in EXPECTED.items()}


class Devices:
    """What each device does when it is asked for the first time, the second, and so on: `answers`, `fails`, nothing."""

    def __init__(self, **does):
        self.asked = {name: [] for name in NAMES}
        self._does = {name.replace("_", "-"): [*steps] for name, steps in does.items()}

    def ask_each(self, keys, packet, *, deadline_s, into=None):
        asked = decode(InferRequest, packet)
        replies = into or Replies(0, time.monotonic() + deadline_s)
        replies.expect(len(keys))
        for key in keys:
            name = key.rpartition("/")[2]
            self.asked[name].append(asked)
            step = self._does[name].pop(0)
            if step == "answers":
                feature = np.ones((1, 2), np.float32)
                header = InferReply(
                    shape=feature.shape, request=asked.request, submodel=NAMES[name], device=name, seconds=0.0
                )
                place = INFER.key(fleet="f", submodel=NAMES[name], device=name)
                replies.put(Reply(place, encode(header, to_payload(feature))))
            elif step == "fails":
                replies.put(Failure(UnavailableError("no")))
            replies.end(key)
        return replies


def gathered(devices, deadline_s=60.0):
    return gather(devices.ask_each, "f", "0" * 64, IMAGES, EXPECTED, encoding="raw", deadline_s=deadline_s)


def test_a_device_that_says_nothing_is_asked_once_more():
    devices = Devices(dev_1=["answers"], dev_2=["", "answers"])
    found = gathered(devices)
    assert sorted(found.features) == [0, 1]
    assert not found.late
    assert [len(asked) for asked in devices.asked.values()] == [1, 2]


def test_the_second_time_it_has_what_is_left_of_the_deadline():
    devices = Devices(dev_1=["answers"], dev_2=["", ""])
    gathered(devices)
    first, second = devices.asked["dev-2"]
    assert 0 < second.deadline_s < first.deadline_s


def test_a_device_that_says_nothing_twice_is_not_asked_a_third_time():
    devices = Devices(dev_1=["answers"], dev_2=["", ""])
    found = gathered(devices)
    assert sorted(found.features) == [0]
    assert len(devices.asked["dev-2"]) == 2


def test_a_device_that_fails_is_not_asked_again():
    devices = Devices(dev_1=["answers"], dev_2=["fails"])
    found = gathered(devices)
    assert sorted(found.features) == [0]
    assert [str(problem) for problem in found.problems] == ["no"]
    assert len(devices.asked["dev-2"]) == 1


def test_nobody_is_asked_again_when_there_is_no_time():
    devices = Devices(dev_1=["answers"], dev_2=[""])
    assert sorted(gathered(devices, deadline_s=0.04).features) in ([], [0])  # a busy machine may take longer for one
    assert len(devices.asked["dev-2"]) <= 1
