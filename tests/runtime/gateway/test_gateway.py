"""Predictions of a gateway with devices in one process."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edvit.errors import (
    BundleError,
    ConfigError,
    DeadlineError,
    ImageError,
    TooLargeError,
    UnavailableError,
)
from edvit.runtime.engine.submodel import CHUNK, SubModelEngine
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.image_encoding import decode_images, encode_images
from edvit.runtime.wire.messages import MAX_BATCH
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES
from edvit.shape.image import ImageSize
from fleet_in_memory import memory_fleet, some_images
from tiny_bundle import write_tiny_bundle
from waiting import eventually

LONG_S = 60.0
"""The deadline of these gateways: no test may wait for it."""


def test_predictions_equal_those_of_one_process(fleet, bundle, local):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    for batch in (1, 3, 2 * CHUNK + 1):
        images = some_images(bundle, batch)
        prediction, expected = gateway.predict(images), local.predict(images)
        assert prediction.logits.tobytes() == expected.logits.tobytes()
        assert np.array_equal(prediction.indices, expected.indices)
        assert prediction.missing == ()
        assert not prediction.degraded
        assert prediction.timings.total_s >= prediction.timings.gather_s >= prediction.timings.slowest_run_s > 0


@pytest.mark.parametrize("encoding", ["webp", "jpeg"])
def test_encoded_images_give_the_scores_of_the_images_that_arrive(fleet, bundle, local, encoding):
    fleet.device("dev-1"), fleet.device("dev-2")
    images = some_images(bundle, 3)
    arriving = decode_images(encode_images(images, encoding), images.shape, encoding)
    assert (arriving == images).all() == (encoding == "webp")
    prediction = fleet.gateway(image_encoding=encoding).predict(images)
    assert prediction.logits.tobytes() == local.predict(arriving).logits.tobytes()
    assert not prediction.degraded


def test_a_device_that_cannot_decode_says_so_before_it_counts_as_ready(fleet, monkeypatch):
    monkeypatch.setattr("edvit.runtime.gateway.gateway.check_encoding", lambda encoding: None)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    fleet.device("dev-1")
    gateway = fleet.gateway(ready=False, image_encoding="webp")
    eventually(lambda: gateway.devices()[0].problem)
    assert "built without webp" in gateway.devices()[0].problem


def test_without_any_device_there_is_no_answer(fleet, bundle):
    gateway = fleet.gateway(ready=False)
    with pytest.raises(UnavailableError, match="no device answered"):
        gateway.predict(some_images(bundle))


def test_a_lost_device_degrades_the_answer_and_its_return_mends_it(fleet, bundle, local):
    images = some_images(bundle)
    fleet.device("dev-1")
    lost = fleet.device("dev-2")
    gateway = fleet.gateway()
    lost.node.close()
    prediction = gateway.predict(images)
    assert prediction.missing == (1,)
    assert prediction.degraded
    assert prediction.logits.tobytes() == local.predict(images, absent=[1]).logits.tobytes()
    eventually(lambda: not gateway.is_ready())
    fleet.device("dev-2")
    gateway.wait_ready(30)
    assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()


def test_a_device_that_dies_in_mid_request_is_not_waited_for(fleet, bundle, local, monkeypatch):
    images = some_images(bundle)
    fleet.device("dev-1")
    dying = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=LONG_S)
    held, began, let_go = dying._held[bundle.digest, 1].engine, threading.Event(), threading.Event()
    run = SubModelEngine.run

    def stuck(self, images):
        if self is held:
            began.set()
            let_go.wait(3)
        return run(self, images)

    monkeypatch.setattr(SubModelEngine, "run", stuck)
    results = []
    thread = threading.Thread(target=lambda: results.append(gateway.predict(images)))
    start = time.monotonic()
    thread.start()
    assert began.wait(20)
    dying.node.close()
    thread.join(LONG_S)
    assert time.monotonic() - start < LONG_S
    let_go.set()
    assert results[0].missing == (1,)
    assert results[0].logits.tobytes() == local.predict(images, absent=[1]).logits.tobytes()


def test_a_slow_device_is_waited_for_until_the_deadline_and_no_longer(fleet, bundle, monkeypatch):
    """It answers seconds after: a gateway that still waited would take the answer."""
    fleet.device("dev-1")
    slow = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=0.3)
    held, let_go = slow._held[bundle.digest, 1].engine, threading.Event()
    run = SubModelEngine.run
    monkeypatch.setattr(
        SubModelEngine, "run", lambda self, images: (self is held and let_go.wait(3), run(self, images))[1]
    )
    assert gateway.predict(some_images(bundle)).missing == (1,)
    let_go.set()
    eventually(lambda: not gateway.predict(some_images(bundle)).degraded)


def test_devices_that_are_all_late_are_told_apart_from_none(fleet, bundle, monkeypatch):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=0.3)
    let_go = threading.Event()
    run = SubModelEngine.run
    monkeypatch.setattr(SubModelEngine, "run", lambda self, images: (let_go.wait(30), run(self, images))[1])
    with pytest.raises(DeadlineError, match=r"no device answered within 0\.3 s \(2 of 2 are online\)"):
        gateway.predict(some_images(bundle))
    let_go.set()
    eventually(lambda: _answers(gateway, some_images(bundle)))


def _answers(gateway, images):
    try:
        return not gateway.predict(images).degraded
    except DeadlineError:
        return False


def test_devices_that_hold_nothing_yet_are_told_apart_from_none(fleet, bundle):
    fleet.device("dev-1", memory_limit_bytes=1000)
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[0].problem)
    with pytest.raises(UnavailableError, match=r"no device answered \(1 of 2 are online\); GET /fleet says why"):
        gateway.predict(some_images(bundle))


def test_requests_from_many_threads(fleet, bundle, local):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    expected = [local.predict(some_images(bundle, seed=i)).logits for i in range(8)]
    got = {}

    def work(i):
        got[i] = [gateway.predict(some_images(bundle, seed=i)).logits for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert all(np.array_equal(logits, expected[i]) for logits in got[i])


def test_wrong_images_are_refused(fleet):
    gateway = fleet.gateway(ready=False)
    for wrong in (
        np.zeros((1, 3, 16, 16), np.float32),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((0, 3, 16, 16), np.uint8),
    ):
        with pytest.raises(ImageError):
            gateway.predict(wrong)
    too_many = np.zeros((MAX_BATCH + 1, 3, 16, 16), np.uint8)
    with pytest.raises(TooLargeError, match="a batch of 1,025 images is too large: send at most 1,024 at once"):
        gateway.predict(too_many)


def test_a_batch_may_be_no_larger_than_one_message(fleet, tmp_path):
    gateway = fleet.gateway(ready=False, bundle=write_tiny_bundle(tmp_path / "large", size=300))
    most = MAX_PAYLOAD_BYTES // (3 * 300 * 300)
    too_many = np.broadcast_to(np.zeros((1, 3, 300, 300), np.uint8), (most + 1, 3, 300, 300))
    with pytest.raises(TooLargeError, match=f"at most {most} at once"):
        gateway.predict(too_many)


@pytest.mark.parametrize("deadline_s", [0, -1.0, float("inf"), float("nan")])
def test_impossible_deadlines_are_refused(fleet, bundle, deadline_s):
    with pytest.raises(ConfigError, match="deadline"):
        Gateway(bundle, fleet.node(), deadline_s=deadline_s)


def test_a_fusion_that_cannot_be_loaded_is_refused(fleet, bundle, tmp_path):
    (tmp_path / "fusion.onnx").write_bytes(b"nothing")
    broken = type(bundle)(path=tmp_path, manifest=bundle.manifest, digest=bundle.digest)
    with pytest.raises(BundleError, match="fusion"):
        Gateway(broken, fleet.node())


def test_a_strict_gateway_refuses_instead(fleet, bundle):
    fleet.device("dev-1")
    lost = fleet.device("dev-2")
    gateway = fleet.gateway(strict=True)
    assert not gateway.predict(some_images(bundle)).degraded
    lost.node.close()
    with pytest.raises(UnavailableError, match="sub-model 1 cannot be asked now, and the gateway is strict"):
        gateway.predict(some_images(bundle))


def test_time_that_a_request_has_waited_counts(fleet, bundle):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=30.0)
    with pytest.raises(DeadlineError, match="the request waited for 40"):
        gateway.predict(some_images(bundle), since=time.perf_counter() - 40)
    assert not gateway.predict(some_images(bundle), since=time.perf_counter() - 5).degraded


@pytest.mark.parametrize("encoding", ["raw", "webp"])
def test_images_that_are_not_square_cross_the_wire(tmp_path, encoding):
    bundle = write_tiny_bundle(tmp_path / "bundle", size=ImageSize(24, 40))
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        fleet.device("dev-1")
        fleet.device("dev-2")
        gateway = fleet.gateway(image_encoding=encoding)
        images = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 40), dtype=np.uint8)
        assert np.array_equal(gateway.predict(images).logits, LocalPredictor(bundle).predict(images).logits)
        with pytest.raises(ImageError, match=r"\[batch, 3, 24, 40\], not \[5, 3, 40, 24\]"):
            gateway.predict(images.transpose(0, 1, 3, 2))
