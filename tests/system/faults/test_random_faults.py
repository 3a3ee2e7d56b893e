"""Devices that are killed, stopped and brought back at random while requests come."""

from __future__ import annotations

import contextlib
import random

import pytest

from faults import RandomFaults
from fleet_in_memory import some_images
from open_loop import OpenLoop
from reference import Reference
from served_fleet import LONG_S, ServedFleet
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("random") / "bundle", submodels=4, classes=8)


@pytest.mark.parametrize("seed", [1])
def test_random_faults_lose_nothing_and_leave_nothing(bundle, tmp_path, seed):
    """Every answer is right and marked; the gateway has as many threads and handles as before."""
    images = some_images(bundle, batch=8)
    reference = Reference(bundle, images)
    with contextlib.ExitStack() as stack:
        fleet = ServedFleet(stack, bundle, tmp_path)
        fleet.start_gateway()
        fleet.start_devices()
        fleet.wait_whole()
        with contextlib.closing(OpenLoop(fleet.url, images)) as load:
            load.more(200)
        _, threads, handles = fleet.use()
        faults = RandomFaults(fleet, random.Random(seed), pause_s=1.0)
        with contextlib.closing(OpenLoop(fleet.url, images)) as load:
            faults.do(15)
            faults.return_all()
            fleet.wait_whole()
            load.more(20, lambda answer: not answer.degraded)
        assert load.problems(reference) == []
        eventually(lambda: fleet.use()[1] <= threads + 3, LONG_S)
        eventually(lambda: fleet.use()[2] <= handles + 3, LONG_S)
