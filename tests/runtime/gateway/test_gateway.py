from __future__ import annotations

import json
import os
import socket
import threading
import time

import numpy as np
import pytest

from edvit.errors import (
    BundleError,
    ConfigError,
    DeadlineError,
    FleetTakenError,
    ImageError,
    TooLargeError,
    UnavailableError,
)
from edvit.fleet import Device, Fleet
from edvit.runtime.device.agent import DeviceAgent
from edvit.runtime.engine.submodel import CHUNK, SubModelEngine
from edvit.runtime.gateway import reconcile
from edvit.runtime.gateway.breaker import MISSES
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.lease import SAME_AGE_S
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import decode_images, encode_images
from edvit.runtime.wire.messages import MAX_BATCH, DeviceInfo, HeldSubModel, InferRequest, LoadRequest
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES, Packet
from edvit.runtime.wire.topics import ALIVE, INFER, INFO, LOAD
from edvit.runtime.wire.transport import Reply
from edvit.shape.image import ImageSize
from fleet_in_memory import memory_fleet, some_images
from tiny_bundle import FEATURE_DIM, write_tiny_bundle
from waiting import eventually

LONG_S = 60.0
"""The deadline of these gateways: no test may wait for it."""


def fleet_of(*devices):
    return Fleet(name="local", devices=tuple(Device.model_validate(device) for device in devices))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Three sub-models on dev-1 and dev-2 (0 and 2 on dev-1), and a spare device."""
    fleet = fleet_of({"name": "dev-1"}, {"name": "dev-2"})
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("gateway") / "bundle", submodels=3, classes=6, fleet=fleet)
    assert [line.device for line in bundle.manifest.plan.placed] == ["dev-1", "dev-2", "dev-1"]
    return bundle


@pytest.fixture
def fleet(bundle, tmp_path):
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


@pytest.fixture
def local(bundle):
    return LocalPredictor(bundle)


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
    monkeypatch.setattr("edvit.runtime.wire.image_encoding.features.check", lambda name: False)
    fleet.device("dev-1")
    gateway = fleet.gateway(ready=False, image_encoding="webp")
    eventually(lambda: gateway.devices()[0].problem)
    assert "built without webp" in gateway.devices()[0].problem


def test_the_order_of_starting_does_not_matter(fleet, bundle, local):
    gateway = fleet.gateway(ready=False)
    assert not gateway.is_ready()
    fleet.device("dev-2"), fleet.device("dev-1")
    gateway.wait_ready(30)
    assert gateway.is_ready()
    assert not gateway.predict(some_images(bundle)).degraded


def test_wait_ready_names_what_is_missing(fleet):
    fleet.device("dev-2")
    gateway = fleet.gateway(ready=False)
    with pytest.raises(UnavailableError, match=r"dev-1 \(sub-model 0, 2\): not online") as raised:
        gateway.wait_ready(0.3)
    assert "\n" not in str(raised.value)


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


def test_a_new_gateway_takes_over_what_is_loaded(fleet, bundle):
    said = []
    fleet.device("dev-1", say=said.append), fleet.device("dev-2", say=said.append)
    fleet.gateway().close()
    assert len(said) == 3
    assert not fleet.gateway().predict(some_images(bundle)).degraded
    assert len(said) == 3


def test_a_new_bundle_replaces_the_old_one(fleet, bundle, tmp_path):
    agent, _ = fleet.device("dev-1"), fleet.device("dev-2")
    fleet.gateway().close()
    other = write_tiny_bundle(tmp_path / "other", submodels=2, classes=6, fleet=bundle.manifest.plan.fleet, seed=5)
    images = some_images(other)
    gateway = fleet.gateway(bundle=other)
    assert gateway.predict(images).logits.tobytes() == LocalPredictor(other).predict(images).logits.tobytes()
    assert [held.id for held in agent.info().submodels] == [0]


def test_devices_tells_what_is_where(fleet, bundle, tmp_path):
    other = fleet_of({"name": "dev-1", "memory_mb": 10}, {"name": "spare", "memory_mb": 20}, {"name": "away"})
    planned = write_tiny_bundle(tmp_path / "planned", submodels=1, classes=2, fleet=other)
    for name, limit in (("dev-1", 20_000_000), ("spare", None), ("stranger", 30_000_000)):
        fleet.device(name, memory_limit_bytes=limit)
    gateway = fleet.gateway(bundle=planned)
    eventually(lambda: gateway.devices()[1].alive and len(gateway.devices()) == 4)
    one, spare, away, stranger = gateway.devices()
    assert (one.name, one.alive, one.planned, one.submodels) == ("dev-1", True, (0,), (0,))
    assert one.memory_bytes == planned.manifest.submodel(0).peak_memory_bytes
    assert one.memory_limit_bytes == 10_000_000
    assert one.problem is None
    assert (spare.name, spare.alive, spare.planned, spare.submodels) == ("spare", True, (), ())
    assert (away.name, away.alive, away.planned) == ("away", False, ())
    assert (stranger.name, stranger.alive, stranger.pid) == ("stranger", True, None)
    assert [device.state for device in (one, spare, away)] == ["ready", "ready", "offline"]
    assert [device.in_fleet for device in (one, spare, away, stranger)] == [True, True, True, False]


def test_a_refused_load_is_told_and_does_not_stop_the_others(fleet, bundle, local):
    fleet.device("dev-1")
    fleet.device("dev-2", memory_limit_bytes=1000)
    gateway = fleet.gateway(ready=False)
    with pytest.raises(UnavailableError, match=r"dev-2 \(sub-model 1\): the planned sub-models need .* MB"):
        gateway.wait_ready(1.0)
    assert gateway.predict(some_images(bundle)).missing == (1,)
    refused = gateway.devices()[1]
    assert "limit" in refused.problem
    assert (refused.memory_limit_bytes, refused.memory_bytes, refused.submodels) == (1000, 0, ())
    assert (refused.host, refused.pid) == (socket.gethostname(), os.getpid())


def test_the_older_of_two_devices_keeps_the_name(fleet, bundle):
    older = fleet.device("dev-1")
    fleet.device("dev-2")
    gateway = fleet.gateway()
    newer = fleet.device("dev-1")
    with pytest.raises(ConfigError, match="already running"):
        newer.run()
    newer.close()
    assert older._end.empty()
    assert not gateway.predict(some_images(bundle)).degraded


def test_a_device_that_died_unnoticed_is_replaced_by_its_successor(fleet, bundle):
    """The network tells of a lost power supply only after seconds: until then the dead one seems to be there."""
    ghost = fleet.node()
    ghost.announce(ALIVE.key(fleet="local", device="dev-2", instance="0" * 16))
    fleet.device("dev-1")
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].state == "silent")
    fleet.device("dev-2")
    gateway.wait_ready(30)
    ghost.close()
    assert not gateway.predict(some_images(bundle)).degraded
    assert gateway.is_ready()


def test_a_successor_that_dies_before_it_is_accepted_does_not_stay_online(fleet, bundle):
    here = {"fleet": "local", "device": "dev-2"}
    ghost, successor = fleet.node(), fleet.node()
    ghost.announce(ALIVE.key(**here, instance="0" * 16))
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].state == "silent")
    successor.announce(ALIVE.key(**here, instance="1" * 16))
    successor.close(), ghost.close()
    eventually(lambda: gateway.devices()[1].state == "offline")


def test_a_device_whose_replacement_ends_is_taken_back(fleet, bundle, monkeypatch):
    """The first hangs, a replacement starts, the first revives, and the replacement ends."""
    monkeypatch.setattr(reconcile, "SETTLE_FIRST_S", 60.0)
    hung, let_go, answers = [], threading.Event(), DeviceAgent._on_info
    monkeypatch.setattr(
        DeviceAgent, "_on_info", lambda self, asked: (self in hung and let_go.wait(60), answers(self, asked))[1]
    )
    fleet.device("dev-1")
    hung.append(fleet.device("dev-2"))
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].state == "silent")
    second = fleet.device("dev-2")
    gateway.wait_ready(30)
    let_go.set()
    second.close(), second.node.close()
    eventually(lambda: gateway.devices()[1].state == "ready" and not gateway.predict(some_images(bundle)).degraded)


def test_a_device_that_lost_its_models_is_loaded_again(fleet, bundle):
    """Another gateway may have put another bundle on it."""
    fleet.device("dev-1")
    agent = fleet.device("dev-2")
    gateway = fleet.gateway()
    agent._held = {("f" * 64, i): held for (_, i), held in agent._held.items()}
    assert gateway.predict(some_images(bundle)).missing == (1,)
    eventually(lambda: not gateway.predict(some_images(bundle)).degraded)


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


class Liar:
    """A device that says it holds what it is told to, and answers with whatever it is given."""

    def __init__(self, fleet, name):
        self.node = fleet.node()
        self.name = name
        self.answers = []
        self.honest = True
        here = {"fleet": "local", "device": name}
        self.node.serve(INFO.key(**here), lambda request: [Reply(INFO.key(**here), encode(self._info()))])
        self.node.serve(LOAD.key(**here), self._on_load)
        self.node.serve(INFER.key(**here, submodel="*"), self._on_infer)
        self.node.announce(ALIVE.key(**here, instance="a" * 16))

    def _info(self, **held):
        return DeviceInfo(device=self.name, instance="a" * 16, version="0", host="h", pid=1, threads=1, **held)

    def _on_load(self, request):
        asked = decode(LoadRequest, request.packet)
        held = tuple(
            HeldSubModel(bundle=asked.bundle, id=s.id, sha256=s.sha256, memory_bytes=s.memory_bytes)
            for s in asked.submodels
        )
        info = self._info(submodels=held)
        yield Reply(LOAD.key(fleet="local", device=self.name), encode(info))

    def _on_infer(self, request):
        asked = decode(InferRequest, request.packet)
        answers = [infer_answer(device=self.name)] if self.honest else []
        for answer in [*answers, *self.answers]:
            yield to_request(answer, asked.request)


def to_request(answer, request):
    """The same answer as one to this request, where it is not one to another."""
    header = answer.packet.header.replace(b'"here"', f'"{request}"'.encode())
    return Reply(answer.key, Packet(header, answer.packet.payload))


def infer_answer(key_submodel=1, key_device=None, payload=None, **changes):
    header = {
        "wire": 3,
        "dtype": "float32",
        "shape": [1, FEATURE_DIM],
        "request": "here",
        "submodel": 1,
        "device": "dev-2",
        "seconds": 0.0,
    }
    header.update(changes)
    key = INFER.key(fleet="local", submodel=key_submodel, device=key_device or header["device"])
    payload = np.zeros(FEATURE_DIM, "<f4").tobytes() if payload is None else payload
    return Reply(key, Packet(json.dumps(header).encode(), payload))


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


def test_strange_liveliness_keys_are_ignored(fleet, bundle):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    gateway._reconciler._on_token("edvit/local/devices/a/b/c/d", True)
    assert gateway.is_ready()


def test_closing_ends_the_threads_that_load_devices(fleet):
    """One in the middle of a load that takes its minute, one between two tries."""
    asked, let_go = threading.Event(), threading.Event()
    slow, broken = Liar(fleet, "dev-1"), fleet.node()
    slow.node.serve(LOAD.key(fleet="local", device="dev-1"), lambda request: (asked.set(), let_go.wait(60), ())[2])
    broken.announce(ALIVE.key(fleet="local", device="dev-2", instance="b" * 16))
    before = set(threading.enumerate())
    gateway = fleet.gateway(ready=False)
    assert asked.wait(60)
    eventually(lambda: gateway.devices()[1].problem)
    gateway.close()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith(("lease", "reconcile"))] == []
    let_go.set()


# --- devices that hang, and names that nobody knows --------------------------------------------------------


class Hanging:
    """Holds up the inferences of one agent until it is let go."""

    def __init__(self, agent, monkeypatch):
        self.asked = 0
        self.goes = threading.Event()
        self.goes.set()
        run, engines = SubModelEngine.run_in_chunks, [held.engine for held in agent._held.values()]

        def maybe(engine, images, **how):
            if engine in engines and not self.goes.is_set():
                self.asked += 1
                self.goes.wait(60)
            return run(engine, images, **how)

        monkeypatch.setattr(SubModelEngine, "run_in_chunks", maybe)


def test_a_device_that_hangs_is_skipped_after_few_misses_and_comes_back_by_itself(fleet, bundle, local, monkeypatch):
    fleet.device("dev-1")
    agent = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=0.4)
    hanging = Hanging(agent, monkeypatch)
    hanging.goes.clear()
    images = some_images(bundle)
    late = [gateway.predict(images) for _ in range(MISSES)]
    assert {prediction.missing for prediction in late} == {(1,)}
    assert late[0].missing_classes == ("class-1", "class-4")
    status = gateway.devices()[1]
    assert (status.state, status.alive, status.submodels) == ("silent", False, ())
    assert "does not answer requests in time" in status.problem
    skipped = [gateway.predict(images) for _ in range(5)]
    assert all(prediction.timings.gather_s < late[0].timings.gather_s for prediction in skipped)
    assert all(
        prediction.logits.tobytes() == local.predict(images, absent=[1]).logits.tobytes() for prediction in skipped
    )
    hanging.goes.set()
    gateway.wait_ready(30)
    assert not gateway.predict(images).degraded
    assert gateway.devices()[1].problem is None


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


def test_a_token_without_answers_is_not_alive(fleet):
    ghost = fleet.node()
    ghost.announce(ALIVE.key(fleet="local", device="dev-2", instance="0" * 16))
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].state == "silent")
    assert not gateway.devices()[1].alive
    assert gateway.devices()[1].problem == "the device does not answer"


def test_names_outside_the_fleet_get_no_thread_and_are_forgotten(fleet, bundle):
    fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    before = threading.active_count()
    strange = fleet.node()
    tokens = [strange.announce(ALIVE.key(fleet="local", device=f"x{i}", instance="0" * 16)) for i in range(1100)]
    strange.announce(ALIVE.key(fleet="local", device="evil\x1b[2J", instance="0" * 16))
    for i in range(100):
        strange.announce(ALIVE.key(fleet="local", device="dev-2", instance=f"{i:016x}"))
    eventually(lambda: len(gateway.devices()) == 2 + reconcile.MAX_STRANGERS)
    assert threading.active_count() <= before + 1
    assert not gateway.predict(some_images(bundle)).degraded
    for token in tokens:
        token.close()
    eventually(lambda: len(gateway.devices()) <= 3)
    strange.close()
    eventually(lambda: len(gateway.devices()) == 2)
    assert not gateway.predict(some_images(bundle)).degraded


def test_a_strange_name_is_escaped(fleet):
    fleet.node().announce(ALIVE.key(fleet="local", device="evil\x1b[2J\nok", instance="0" * 16))
    gateway = fleet.gateway(ready=False)
    eventually(lambda: len(gateway.devices()) == 3)
    assert gateway.devices()[2].name == "evil\\x1b[2J\\nok"


def test_what_a_device_says_is_escaped(fleet, bundle, monkeypatch):
    def rude(self, asked):
        raise UnavailableError("\x1b[2J12:00:00 dev-1:\u202e ready")

    monkeypatch.setattr(DeviceAgent, "_check_memory", rude)
    fleet.device("dev-1")
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[0].problem)
    assert gateway.devices()[0].problem == "\\x1b[2J12:00:00 dev-1:\\u202e ready"


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


# --- two gateways ------------------------------------------------------------------------------------------


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


# --- mending -----------------------------------------------------------------------------------------------


def test_the_submodels_of_a_device_that_is_gone_go_elsewhere_and_come_back(fleet, bundle, local):
    images = some_images(bundle)
    one = fleet.device("dev-1")
    lost = fleet.device("dev-2")
    gateway = fleet.gateway(mend_after_s=0.4)
    lost.node.close()
    eventually(lambda: not gateway.predict(images).degraded)
    assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    assert [held.id for held in one.info().submodels] == [0, 2, 1]
    assert [device.submodels for device in gateway.devices()] == [(0, 1, 2), ()]
    fleet.device("dev-2")
    eventually(lambda: gateway.devices()[1].submodels == (1,))
    eventually(lambda: [held.id for held in one.info().submodels] == [0, 2])
    assert not gateway.predict(images).degraded
    assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()


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
