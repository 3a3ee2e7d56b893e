"""Machines that are not as they should be: full disks, and clocks that are off."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

import shifted_clock
import small_disk
from device_processes import DeviceProcess
from fleet_in_memory import some_images
from keyed_fleet import keyed_fleet
from reference import Reference
from served_fleet import LONG_S, ServedFleet
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

DEVICES = ("dev-1", "dev-2", "dev-3")
FULL = Path("/dev/full")
small_disks = pytest.mark.skipif(bool(small_disk.lack()), reason=small_disk.lack() or "possible")
shifted_clocks = pytest.mark.skipif(bool(shifted_clock.LACK), reason=shifted_clock.LACK or "possible")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Each model file has 2 MB."""
    folder = tmp_path_factory.mktemp("machines") / "bundle"
    return write_tiny_bundle(folder, submodels=3, classes=6, ballast_bytes=2_000_000)


@pytest.fixture(scope="module")
def images(bundle):
    return some_images(bundle)


@pytest.fixture(scope="module")
def reference(bundle, images):
    return Reference(bundle, images)


@pytest.fixture
def fleet(bundle, tmp_path):
    with contextlib.ExitStack() as stack:
        yield ServedFleet(stack, bundle, tmp_path)


@small_disks
def test_a_device_whose_disk_is_full_says_so_and_loads_once_there_is_room(fleet, images, reference, tmp_path):
    cache = tmp_path / "small"
    cache.mkdir()
    fleet.start_gateway()
    for name in ("dev-1", "dev-3"):
        fleet.start_device(name)
    device = fleet.start_device("dev-2", cache=cache, before=small_disk.within(cache))
    eventually(lambda: "No space left" in (fleet.device("dev-2").problem or ""), LONG_S)
    eventually(lambda: fleet.health().missing == (1,), LONG_S)
    answer = fleet.predict(images[0])
    assert answer.missing == (1,)
    assert reference.problem(0, answer) is None
    assert device.says("No space left")
    # What could not be finished does not fill the disk.
    eventually(lambda: not [*Path(f"/proc/{device.pid}/root{cache}").iterdir()], LONG_S)
    small_disk.resize(device.pid, cache, "16m")
    fleet.wait_whole()
    assert reference.problem(0, fleet.predict(images[0])) is None


@small_disks
def test_a_gateway_whose_disk_is_full_answers(fleet, images, reference, tmp_path):
    """Its temporary folder and what it prints to have no room: answers need neither."""
    full = tmp_path / "full"
    full.mkdir()
    fill = ["/bin/sh", "-c", f'cat /dev/zero > {full}/filling 2> /dev/null; exec "$@"', "sh"]
    fleet.start_gateway(before=[*small_disk.within(full), *fill, "env", f"TMPDIR={full}"], says=FULL)
    fleet.start_devices()
    fleet.wait_whole()
    for i in range(len(images)):
        assert reference.problem(i, fleet.predict(images[i])) is None
    form = httpx.post(f"{fleet.url}/predict", files={"file": ("x.png", b"no image")}, timeout=LONG_S)
    assert form.status_code in (400, 415)
    fleet.devices["dev-2"].kill()  # which it has to say
    eventually(lambda: fleet.health().missing == (1,), LONG_S)
    assert reference.problem(0, fleet.predict(images[0])) is None


def test_a_device_that_can_print_nothing_loads_and_answers(fleet, images, reference):
    fleet.start_gateway()
    for name in DEVICES:
        fleet.start_device(name, before=["/bin/sh", "-c", f'exec "$@" > {FULL}', "sh"])
    fleet.wait_whole()
    assert reference.problem(0, fleet.predict(images[0])) is None


@shifted_clocks
def test_clocks_that_are_off_by_an_hour_change_nothing(fleet, images, reference, tmp_path):
    """Nothing compares the wall clocks of two machines."""
    fleet.start_gateway(before=shifted_clock.off_by(-1800, tmp_path))
    for name, seconds in zip(DEVICES, (3600, -3600, 0), strict=True):
        fleet.start_device(name, before=shifted_clock.off_by(seconds, tmp_path))
    fleet.wait_whole()
    for i in range(len(images)):
        assert reference.problem(i, fleet.predict(images[i])) is None


@contextlib.contextmanager
def keyed_device(fleet, name, before):
    """`edvit device` with keys, in a process of its own."""
    arguments = ["--name", name, "--fleet", "local", "--connect", fleet.endpoint, "--keys", fleet.folder / name]
    device = DeviceProcess([*arguments, "--cache", fleet.folder / "cache", "--threads", 1], before=before)
    try:
        yield device
    finally:
        device.kill()


@shifted_clocks
@pytest.mark.parametrize("seconds", [3600, -3600], ids=["ahead", "behind"])
def test_a_certificate_of_today_holds_on_a_clock_that_is_off_by_an_hour(bundle, images, tmp_path, seconds):
    """It is good from a day before it was made."""
    with keyed_fleet(tmp_path, bundle) as fleet, contextlib.ExitStack() as stack:
        before = shifted_clock.off_by(seconds, tmp_path)
        for name in DEVICES:
            fleet.join(name)
            stack.enter_context(keyed_device(fleet, name, before))
        gateway = fleet.gateway(fleet.transport())
        gateway.wait_ready(LONG_S)
        assert not gateway.predict(images).degraded


DAY_S = 86_400


@shifted_clocks
@pytest.mark.parametrize("seconds", [-2 * DAY_S, 20 * 365 * DAY_S], ids=["two days behind", "twenty years ahead"])
def test_a_device_whose_clock_makes_certificates_invalid_waits_and_says_why(bundle, images, tmp_path, seconds):
    """It links to nobody, and the others answer; it is taken once its clock is right."""
    with keyed_fleet(tmp_path, bundle) as fleet, contextlib.ExitStack() as stack:
        for name in DEVICES:
            fleet.join(name)
        for name in ("dev-1", "dev-3"):
            stack.enter_context(keyed_device(fleet, name, []))
        off = stack.enter_context(keyed_device(fleet, "dev-2", shifted_clock.off_by(seconds, tmp_path)))
        gateway = fleet.gateway(fleet.transport())
        eventually(lambda: off.says("clock"), LONG_S)
        eventually(lambda: all(gateway.devices()[i].submodels for i in (0, 2)), LONG_S)
        assert gateway.predict(images).missing == (1,)
        off.kill()
        stack.enter_context(keyed_device(fleet, "dev-2", []))
        gateway.wait_ready(LONG_S)
        assert not gateway.predict(images).degraded
