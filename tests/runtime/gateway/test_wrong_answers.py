"""Devices that answer something else than they were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from edvit.errors import UnavailableError
from edvit.runtime.gateway.breaker import MISSES
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import INFER
from edvit.runtime.wire.transport import Reply
from fleet_in_memory import some_images
from lying_device import Liar, infer_answer
from tiny_bundle import FEATURE_DIM
from waiting import eventually


@pytest.mark.parametrize(
    "answer",
    [
        infer_answer(payload=b""),
        infer_answer(payload=bytes(4 * FEATURE_DIM + 1)),
        infer_answer(shape=[2, FEATURE_DIM], payload=bytes(8 * FEATURE_DIM)),
        infer_answer(shape=[1, FEATURE_DIM - 1], payload=bytes(4 * FEATURE_DIM - 4)),
        infer_answer(shape=[FEATURE_DIM, 1]),
        infer_answer(shape=[2**40, 2**40]),
        infer_answer(dtype="uint8"),
        infer_answer(submodel=0),
        infer_answer(submodel=7),
        infer_answer(key_submodel=0, submodel=0),
        infer_answer(key_device="dev-1"),
        infer_answer(device="dev-1"),
        infer_answer(seconds=-1.0),
        infer_answer(surprise=1),
        infer_answer(request="0" * 16),
        infer_answer(payload=np.full(FEATURE_DIM, np.nan, "<f4").tobytes()),
        infer_answer(payload=np.full(FEATURE_DIM, np.inf, "<f4").tobytes()),
        Reply(INFER.key(fleet="local", submodel=1, device="dev-2"), Packet(b"nonsense", b"")),
        Reply(INFER.key(fleet="local", submodel=1, device="dev-2"), Packet(b"x" * 100_000, b"")),
    ],
    ids=range(19),
)
def test_a_lying_device_counts_as_missing(fleet, bundle, local, answer):
    fleet.device("dev-1")
    liar = Liar(fleet, "dev-2")
    gateway = fleet.gateway()
    liar.honest = False
    liar.answers = [answer]
    images = some_images(bundle, batch=1)
    prediction = gateway.predict(images)
    assert prediction.missing == (1,)
    assert prediction.logits.tobytes() == local.predict(images, absent=[1]).logits.tobytes()
    liar.honest = True
    eventually(lambda: not gateway.predict(images).degraded)


def test_a_second_answer_for_a_submodel_is_not_taken(fleet, bundle, local):
    slow = fleet.device("dev-1")
    liar = Liar(fleet, "dev-2")
    liar.answers = [infer_answer(payload=np.ones(FEATURE_DIM, "<f4").tobytes())]
    gateway = fleet.gateway()
    del slow
    images = some_images(bundle, batch=1)
    first = gateway.predict(images).logits
    liar.answers = []
    assert np.array_equal(gateway.predict(images).logits, first)


def test_a_device_that_claims_to_hold_something_else_is_not_ready(fleet, bundle, monkeypatch):
    liar = Liar(fleet, "dev-2")
    monkeypatch.setattr(liar, "_info", lambda **held: Liar._info(liar))
    fleet.device("dev-1")
    gateway = fleet.gateway(ready=False)
    with pytest.raises(UnavailableError, match="other sub-models than it was told"):
        gateway.wait_ready(0.5)


def test_a_device_that_answers_wrongly_is_skipped_and_probed(fleet, bundle):
    fleet.device("dev-1")
    liar = Liar(fleet, "dev-2")
    gateway = fleet.gateway()
    liar.honest, liar.answers = False, [infer_answer(payload=np.full(FEATURE_DIM, np.nan, "<f4").tobytes())]
    images = some_images(bundle, batch=1)
    for _ in range(MISSES):
        assert gateway.predict(images).missing == (1,)
    status = gateway.devices()[1]
    assert status.state != "ready"
    assert "wrong answers" in status.problem or "not finite" in status.problem
    liar.honest, liar.answers = True, []
    gateway.wait_ready(30)
    assert not gateway.predict(images).degraded
