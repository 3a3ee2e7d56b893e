"""Faults of the network, between namespaces: links that break, lose, stall and crawl, and a device that comes back.

Every answer is compared with one process; one that was made without every feature must say so.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import namespaces
from fleet_in_memory import some_images
from open_loop import OpenLoop
from reference import Reference
from served_fleet import LONG_S, ServedFleet
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(namespaces.lack()), reason=namespaces.lack() or "possible"),
]

DEVICES = ("dev-1", "dev-2", "dev-3")
FEW = 40
"""Answers that are waited for: two seconds of requests."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("network") / "bundle", submodels=3, classes=6)


@pytest.fixture(scope="module")
def images(bundle):
    return some_images(bundle, batch=8)


@pytest.fixture(scope="module")
def reference(bundle, images):
    return Reference(bundle, images)


@pytest.fixture
def fleet(bundle, tmp_path):
    with namespaces.network(DEVICES) as nodes, contextlib.ExitStack() as stack:
        yield ServedFleet(stack, bundle, tmp_path, nodes)


@pytest.fixture
def running(fleet):
    """The fleet with its gateway and devices, whole."""
    fleet.start_gateway()
    fleet.start_devices()
    fleet.wait_whole()
    return fleet


@contextlib.contextmanager
def asking(fleet, images, reference, *, may_miss=(1,)):
    """Requests in an open loop; in the end all were answered, rightly, and without these sub-models at most."""
    with contextlib.closing(OpenLoop(fleet.url, images, entered=fleet.entered)) as load:
        load.more(FEW, lambda answer: not answer.degraded)
        yield load
    assert load.problems(reference) == []
    for asked in load.asked:
        assert set(asked.answer.missing) <= set(may_miss)
        assert asked.answer.degraded or asked.answer.timings.gather_ms <= 2000


def is_degraded(answer):
    return answer.degraded


def is_whole(answer):
    return not answer.degraded


CUTS = {"both ways": ("sends", "gets"), "from the device": ("sends",), "to the device": ("gets",)}


@pytest.mark.parametrize("ways", CUTS.values(), ids=CUTS)
def test_a_device_whose_link_breaks_is_missed_and_taken_back(running, images, reference, ways):
    """Either way its sub-model is missing, and nothing else; it answers again once the link does."""
    node = running.nodes["dev-2"]
    with asking(running, images, reference) as load:
        for way in ways:
            getattr(node, way).up = False
        load.more(FEW, is_degraded)
        eventually(lambda: running.device("dev-2").state in ("silent", "offline"), LONG_S)
        assert running.health().missing == (1,)
        for way in ways:
            getattr(node, way).up = True
        eventually(lambda: running.device("dev-2").state == "ready", LONG_S)
        load.more(FEW, is_whole)
    running.wait_whole()


def test_a_device_that_is_cut_off_for_long_is_replaced_and_taken_back(running, images, reference):
    """The network itself misses it; another device has its sub-model meanwhile, and gives it back."""
    node = running.nodes["dev-2"]
    with asking(running, images, reference) as load:
        node.sends.up = node.gets.up = False
        eventually(lambda: running.device("dev-2").state == "offline", LONG_S)
        eventually(lambda: running.health().status == "ready", LONG_S)
        load.more(FEW, is_whole)
        node.sends.up = node.gets.up = True
        running.wait_whole()
        load.more(FEW, is_whole)


def test_a_link_that_loses_a_third_of_its_packets_gives_no_wrong_answer(running, images, reference):
    node = running.nodes["dev-2"]
    with asking(running, images, reference) as load:
        node.sends.loss = node.gets.loss = 0.3
        load.more(5 * FEW)
        node.sends.loss = node.gets.loss = 0.0
        eventually(lambda: running.device("dev-2").state == "ready", LONG_S)
        load.more(FEW, is_whole)
    running.wait_whole()


def test_a_link_that_stalls_for_two_seconds_holds_nothing_up(running, images, reference):
    """What comes late is not taken for the answer to something else."""
    node = running.nodes["dev-2"]
    with asking(running, images, reference) as load:
        for link in node.links():
            link.hold(2.0)
        load.more(1, is_degraded)
        eventually(lambda: running.device("dev-2").state == "ready", LONG_S)
        load.more(FEW, is_whole)
    running.wait_whole()


def test_devices_load_and_answer_at_one_megabit_a_second(fleet, images, reference):
    for name in DEVICES:
        for link in fleet.nodes[name].links():
            link.mbps = 1.0
    fleet.start_gateway()
    fleet.start_devices()
    fleet.wait_whole()
    with asking(fleet, images, reference, may_miss=(0, 1, 2)) as load:
        load.more(2 * FEW)


def test_a_device_finds_the_gateway_by_multicast(fleet, images, reference):
    """Without `--connect`, in whatever order they start."""
    fleet.start_device("dev-1", connect=False)
    fleet.start_gateway()
    for name in DEVICES[1:]:
        fleet.start_device(name, connect=False)
    fleet.wait_whole()
    assert reference.problem(0, fleet.predict(images[0])) is None


def test_devices_find_a_gateway_that_is_killed_twenty_times(running, images, reference):
    """Whatever it did when it was killed, the next one answers with every sub-model."""
    for i in range(20):
        running.kill_gateway()
        running.start_gateway()
        running.wait_whole()
        answer = running.predict(images[i % len(images)])
        assert is_whole(answer)
        assert reference.problem(i % len(images), answer) is None
    assert all(device.process.poll() is None for device in running.devices.values())


def test_the_namespaces_end_with_the_block_however_it_ends():
    with pytest.raises(RuntimeError, match="mine"), namespaces.network(["dev-1"]) as nodes:
        names = [node.netns for node in nodes.values()]
        assert all(Path("/run/netns", name).exists() for name in names)
        raise RuntimeError("mine")
    eventually(lambda: not any(Path("/run/netns", name).exists() for name in names))


def test_a_link_loses_delays_and_holds():
    link = namespaces.Link()
    assert link.passes_at(now=1.0, size=1000, chance=0.0) == 1.0
    link.loss = 0.3
    assert link.passes_at(now=1.0, size=1000, chance=0.29) is None
    assert link.passes_at(now=1.0, size=1000, chance=0.31) == 1.0
    link.mbps = 1.0
    assert link.passes_at(now=2.0, size=12_500, chance=1.0) == pytest.approx(2.1)
    assert link.passes_at(now=2.0, size=12_500, chance=1.0) == pytest.approx(2.2)
    link.held_until = 5.0
    assert link.passes_at(now=2.3, size=12_500, chance=1.0) == pytest.approx(5.1)
    assert link.passes_at(now=2.4, size=12_500, chance=1.0) is None  # the queue is full
    link.up = False
    assert link.passes_at(now=9.0, size=1000, chance=1.0) is None
