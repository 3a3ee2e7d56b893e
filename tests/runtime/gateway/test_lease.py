"""Two gateways of one fleet, in one process."""

from __future__ import annotations

import socket
import time

from edvit.errors import FleetTakenError
from edvit.runtime.gateway.lease import SAME_AGE_S
from fleet_in_memory import some_images
from tiny_bundle import write_tiny_bundle
from waiting import eventually


def test_a_second_gateway_with_another_bundle_is_refused(fleet, bundle, tmp_path):
    fleet.device("dev-1"), fleet.device("dev-2")
    first = fleet.gateway()
    time.sleep(2 * SAME_AGE_S)
    other = write_tiny_bundle(tmp_path / "other", submodels=2, classes=6, fleet=bundle.manifest.plan.fleet, seed=5)
    second = fleet.gateway(bundle=other, ready=False)
    eventually(lambda: _refusal(second.check_lease))
    told = _refusal(lambda: second.predict(some_images(other)))
    assert socket.gethostname() in told
    assert bundle.digest[:12] in told
    assert not first.predict(some_images(bundle)).degraded
    first.check_lease()
    first.close()
    second.wait_ready(30)
    second.check_lease()
    assert not second.predict(some_images(other)).degraded


def _refusal(call):
    try:
        call()
    except FleetTakenError as error:
        return str(error)
    return None


def test_a_second_gateway_with_the_same_bundle_answers_too_and_takes_over(fleet, bundle, local):
    fleet.device("dev-1"), fleet.device("dev-2")
    first = fleet.gateway()
    time.sleep(2 * SAME_AGE_S)
    second = fleet.gateway()
    images = some_images(bundle)
    for gateway in (first, second):
        assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    eventually(lambda: second._reconciler.lease.in_charge() is not None)
    assert first._reconciler.lease.in_charge() is None
    first.close()
    eventually(lambda: second._reconciler.lease.in_charge() is None)
    assert not second.predict(images).degraded
