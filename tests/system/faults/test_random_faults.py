"""Devices that are killed, stopped and brought back at random while requests come."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from faults import RandomFaults
from fleet_in_memory import some_images
from open_loop import OpenLoop
from reference import Reference
from served_fleet import ServedFleet
from tiny_bundle import write_tiny_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("random") / "bundle", submodels=4, classes=8)


def end_idle_workers(fleet, images):
    """Workers of the gateway that have nothing to do end at the first request after ten seconds."""
    time.sleep(11)
    fleet.predict(images[0])


def test_random_faults_lose_nothing_and_leave_nothing(bundle, tmp_path):
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
        end_idle_workers(fleet, images)
        _, threads, handles = fleet.use()
        faults = RandomFaults(fleet, random.Random(1), pause_s=1.0)
        with contextlib.closing(OpenLoop(fleet.url, images)) as load:
            faults.do(15)
            faults.return_all()
            fleet.wait_whole()
            load.more(20, lambda answer: not answer.degraded)
        assert load.problems(reference) == []
        end_idle_workers(fleet, images)
        _, threads_after, handles_after = fleet.use()
        assert threads_after <= threads + 3
        assert handles_after <= handles + 3
