"""A fleet that keeps second copies, in one process."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from edvit.errors import ConfigError
from edvit.fleet import Device, Fleet
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.runtime.gateway import hedging
from edvit.runtime.gateway.breaker import MISSES
from edvit.runtime.gateway.deadline import ENOUGH
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.http.app import fleet_of, health_of
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import DeviceInfo, HeldSubModel, InferReply, InferRequest, LoadRequest, to_payload
from edvit.runtime.wire.topics import ALIVE, INFER, INFO, LOAD
from edvit.runtime.wire.transport import Reply
from fleet_in_memory import memory_fleet, some_images
from tiny_bundle import FEATURE_DIM, write_tiny_bundle
from waiting import eventually

NAMES = ("dev-1", "dev-2", "dev-3")
LONG_S = 60.0
"""The deadline of these gateways: no test may wait for it."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Sub-model i on device i + 1 of three."""
    return write_tiny_bundle(tmp_path_factory.mktemp("replicas") / "bundle", submodels=3, classes=6)


def held(gateway):
    """How many devices are ready to answer for each sub-model."""
    return Counter(submodel for device in gateway.devices() for submodel in device.submodels)


def copies(gateway):
    return {submodel: device.name for device in gateway.devices() for submodel in device.copies}


def replicated(fleet, **options):
    """A gateway once every sub-model has a second copy."""
    gateway = fleet.gateway(**{"deadline_s": LONG_S, "replicas": 2, **options})
    eventually(lambda: held(gateway) == {0: 2, 1: 2, 2: 2})
    return gateway


def learn_what_devices_take(gateway, images):
    for _ in range(ENOUGH):
        gateway.predict(images)


class Engines:
    """Counts what the agents run, and holds up those of one agent until it is let go."""

    def __init__(self, agents, monkeypatch):
        self.runs = Counter()
        self.goes = threading.Event()
        self.stuck = threading.Event()
        self.slow = ()
        run = SubModelEngine.run_in_chunks

        def counted(engine, images, **how):
            name, submodel = next(
                (
                    (agent.name, submodel)
                    for agent in agents
                    for (_, submodel), one in list(agent._held.items())
                    if one.engine is engine
                ),
                (None, None),
            )
            if name in self.slow:
                self.stuck.set()
                self.goes.wait(60)
            self.runs[name, submodel] += 1
            return run(engine, images, **how)

        monkeypatch.setattr(SubModelEngine, "run_in_chunks", counted)


@pytest.fixture
def agents(fleet):
    return [fleet.device(name) for name in NAMES]


@pytest.fixture
def engines(agents, monkeypatch):
    engines = Engines(agents, monkeypatch)
    yield engines
    engines.goes.set()


def test_every_submodel_has_a_copy_on_another_device(fleet, agents, bundle):
    gateway = replicated(fleet)
    assert gateway.replicas == 2
    assert set(copies(gateway)) == {0, 1, 2}
    assert all(copies(gateway)[submodel] != NAMES[submodel] for submodel in range(3))
    assert health_of(bundle.manifest, gateway.devices(), 2).without_copy == ()
    told = fleet_of(bundle.manifest, gateway.devices(), 2, gateway.copies_asked)
    assert told.replicas == 2
    assert {submodel: device.name for device in told.devices for submodel in device.copies} == copies(gateway)
    assert all(set(device.copies) <= set(device.submodels) - set(device.planned) for device in told.devices)


def test_a_copy_is_not_asked_while_the_first_device_answers(fleet, bundle, local, engines):
    gateway = replicated(fleet)
    eventually(lambda: sum(engines.runs.values()) >= 6)  # what was loaded has been tried
    images = some_images(bundle)
    expected = local.predict(images).logits.tobytes()
    engines.runs.clear()
    for _ in range(5):
        assert gateway.predict(images).logits.tobytes() == expected
    assert engines.runs == {(name, i): 5 for i, name in enumerate(NAMES)}
    assert gateway.copies_asked.ended == 0


def test_one_replica_is_the_default(fleet, agents, bundle):
    gateway = fleet.gateway()
    assert gateway.replicas == 1
    assert held(gateway) == {0: 1, 1: 1, 2: 1}
    assert health_of(bundle.manifest, gateway.devices()).without_copy == ()


def test_other_numbers_of_replicas_are_refused(fleet, bundle):
    with pytest.raises(ConfigError, match="must be 1 or 2, not 3"):
        Gateway(bundle, fleet.node(), replicas=3)


def test_a_late_device_is_overtaken_by_the_copy_with_the_same_bits(fleet, bundle, local, engines):
    gateway = replicated(fleet)
    images = some_images(bundle)
    learn_what_devices_take(gateway, images)
    before = gateway.copies_asked.late
    engines.slow = ("dev-2",)
    prediction = gateway.predict(images)
    assert engines.stuck.is_set()
    assert not prediction.degraded
    assert prediction.logits.tobytes() == local.predict(images).logits.tobytes()
    assert gateway.copies_asked.late > before


def test_without_budget_a_copy_is_asked_at_half_of_the_deadline(fleet, bundle, local, engines, monkeypatch):
    monkeypatch.setattr(hedging, "BURST", 0)
    gateway = replicated(fleet, deadline_s=2.0)
    images = some_images(bundle)
    expected = local.predict(images).logits.tobytes()
    engines.slow = ("dev-2",)
    prediction = gateway.predict(images)
    assert prediction.logits.tobytes() == expected
    assert gateway.copies_asked.late == 1


def test_a_device_that_is_overtaken_again_and_again_is_asked_no_more_and_comes_back(fleet, bundle, local, engines):
    """It takes one request after the other and answers none, but says what it holds: only a probe can tell."""
    gateway = replicated(fleet, deadline_s=5.0)
    images = some_images(bundle)
    learn_what_devices_take(gateway, images)
    engines.slow = ("dev-2",)
    expected = local.predict(images).logits.tobytes()
    for _ in range(MISSES):
        assert gateway.predict(images).logits.tobytes() == expected
    asked = gateway.copies_asked
    for _ in range(20):
        assert gateway.predict(images).logits.tobytes() == expected
    assert gateway.copies_asked.late - asked.late < 20  # others may have been late, by chance
    eventually(lambda: gateway.devices()[1].submodels == ())
    assert gateway.devices()[1].state == "silent"
    assert gateway.predict(images).logits.tobytes() == expected
    engines.goes.set()
    eventually(lambda: 1 in gateway.devices()[1].submodels)
    assert gateway.predict(images).logits.tobytes() == expected


def test_one_that_is_suspected_and_passes_its_probe_is_asked_first_again(fleet, bundle, engines):
    gateway = replicated(fleet, deadline_s=5.0)
    images = some_images(bundle)
    learn_what_devices_take(gateway, images)
    engines.slow = ("dev-2",)
    for _ in range(MISSES):
        assert not gateway.predict(images).degraded
    engines.goes.set()
    engines.slow = ()

    def is_asked():
        engines.runs.clear()
        gateway.predict(images)
        return engines.runs["dev-2", 1] > 0

    eventually(is_asked)
    eventually(lambda: gateway.devices()[1].submodels)
    assert gateway.devices()[1].problem is None


def test_a_device_that_dies_in_mid_request_is_replaced_at_once(fleet, bundle, local, agents, engines):
    gateway = replicated(fleet)  # late only after a quarter of the deadline, which no test waits for
    engines.slow = ("dev-2",)
    images = some_images(bundle)
    found = []
    thread = threading.Thread(target=lambda: found.append(gateway.predict(images)))
    thread.start()
    assert engines.stuck.wait(20)
    agents[1].node.close()
    thread.join(LONG_S)
    (prediction,) = found
    assert prediction.logits.tobytes() == local.predict(images).logits.tobytes()
    assert (gateway.copies_asked.late, gateway.copies_asked.ended) == (0, 1)
    for _ in range(10):
        assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    assert gateway.copies_asked.ended == 1


@pytest.mark.parametrize("name", NAMES)
def test_whichever_device_goes_no_answer_is_degraded(fleet, bundle, local, agents, name):
    gateway = replicated(fleet)
    agents[NAMES.index(name)].close()
    images = some_images(bundle)
    for _ in range(20):
        assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    eventually(lambda: not gateway.devices()[NAMES.index(name)].submodels)
    health = health_of(bundle.manifest, gateway.devices(), 2)
    assert health.status == "ready"
    assert NAMES.index(name) in health.without_copy


class Wrong:
    """A device that answers with features that are not finite, once it has been tried."""

    def __init__(self, fleet, name):
        self.node, self.name, self.honest = fleet.node(), name, True
        here = {"fleet": "local", "device": name}
        self.held = ()
        self.node.serve(INFO.key(**here), lambda request: [Reply(INFO.key(**here), encode(self._info()))])
        self.node.serve(LOAD.key(**here), self._on_load)
        self.node.serve(INFER.key(**here, submodel="*"), self._on_infer)
        self.node.announce(ALIVE.key(**here, instance="a" * 16))

    def _info(self):
        return DeviceInfo(
            device=self.name, instance="a" * 16, version="0", host="h", pid=1, threads=1, submodels=self.held
        )

    def _on_load(self, request):
        asked = decode(LoadRequest, request.packet)
        self.held = tuple(
            HeldSubModel(bundle=asked.bundle, id=one.id, sha256=one.sha256, memory_bytes=one.memory_bytes)
            for one in asked.submodels
        )
        yield Reply(LOAD.key(fleet="local", device=self.name), encode(self._info()))

    def _on_infer(self, request):
        asked = decode(InferRequest, request.packet)
        for submodel in asked.submodels:
            feature = np.full((asked.shape[0], FEATURE_DIM), 0.0 if self.honest else np.nan, np.float32)
            reply = InferReply(
                shape=feature.shape, request=asked.request, submodel=submodel, device=self.name, seconds=0.0
            )
            key = INFER.key(fleet="local", submodel=submodel, device=self.name)
            yield Reply(key, encode(reply, to_payload(feature)))


def test_a_device_that_answers_wrongly_is_replaced_at_once_and_skipped(fleet, bundle, local):
    fleet.device("dev-1"), fleet.device("dev-3")
    wrong = Wrong(fleet, "dev-2")
    gateway = replicated(fleet)
    wrong.honest = False
    images = some_images(bundle)
    for _ in range(2 * MISSES):
        assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    assert gateway.copies_asked.ended == MISSES
    assert gateway.devices()[1].submodels == ()


def test_a_copy_becomes_the_substitute_and_a_new_one_is_placed(fleet, bundle, local, agents):
    gateway = replicated(fleet, mend_after_s=0.3)
    before = copies(gateway)
    agents[0].close()
    eventually(lambda: held(gateway) == {0: 2, 1: 2, 2: 2})
    assert 0 in gateway.devices()[NAMES.index(before[0])].submodels
    images = some_images(bundle)
    assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    fleet.device("dev-1")
    eventually(lambda: gateway.devices()[0].submodels[:1] == (0,))
    eventually(lambda: held(gateway) == {0: 2, 1: 2, 2: 2})
    settled = copies(gateway)
    for _ in range(20):
        assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    assert copies(gateway) == settled


def test_memory_limits_hold(tmp_path):
    """Room for one sub-model each, and for two on the last: one copy."""
    probe = write_tiny_bundle(tmp_path / "probe", submodels=3, classes=6)
    one_mb = max(submodel.peak_memory_bytes for submodel in probe.manifest.submodels) / 1e6
    sizes = (1.5, 1.5, 2.5)
    devices = tuple(
        Device.model_validate({"name": name, "memory_mb": size * one_mb})
        for name, size in zip(NAMES, sizes, strict=True)
    )
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=3, classes=6, fleet=Fleet(name="local", devices=devices))
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        for name in NAMES:
            fleet.device(name)
        gateway = fleet.gateway(replicas=2)
        eventually(lambda: copies(gateway))
        assert list(copies(gateway).values()) == ["dev-3"]
        assert all(device.memory_bytes <= device.memory_limit_bytes for device in gateway.devices())
        assert len(health_of(bundle.manifest, gateway.devices(), 2).without_copy) == 2


def test_a_new_gateway_takes_the_copies_over(fleet, bundle, agents):
    first = replicated(fleet)
    before = copies(first)
    first.close()
    loaded = {agent.name: {i: id(one.engine) for i, one in agent._held.items()} for agent in agents}
    second = replicated(fleet)
    assert copies(second) == before
    assert {agent.name: {i: id(one.engine) for i, one in agent._held.items()} for agent in agents} == loaded
