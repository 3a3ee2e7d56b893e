"""Devices that come, load, hang and go, as a gateway sees them: in one process."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from edvit.errors import (
    ConfigError,
    UnavailableError,
)
from edvit.runtime.device.agent import DeviceAgent
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.runtime.gateway import deadline, reconcile
from edvit.runtime.gateway.breaker import MISSES
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.topics import ALIVE, LOAD
from fleet_in_memory import fleet_of, some_images
from lying_device import Liar
from tiny_bundle import write_tiny_bundle
from waiting import eventually


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


class Silent:
    """Devices that give no answer to so many of the next looks at them."""

    def __init__(self, monkeypatch):
        self.left = self.asked = 0
        answers = DeviceAgent._on_info

        def maybe(agent, asked):
            self.asked += 1
            if self.left:
                self.left -= 1
                return ()
            return answers(agent, asked)

        monkeypatch.setattr(DeviceAgent, "_on_info", maybe)


def test_a_refusal_keeps_its_reason_while_the_device_does_not_answer(fleet, monkeypatch):
    silent = Silent(monkeypatch)
    monkeypatch.setattr(reconcile, "INFO_DEADLINE_S", 0.1)
    fleet.device("dev-2", memory_limit_bytes=1000)
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].state == "refused")
    reason = gateway.devices()[1].problem
    assert "limit" in reason
    silent.left = 2
    told = set()
    eventually(lambda: told.add(gateway.devices()[1].problem) or (silent.left == 0 and gateway.devices()[1].alive))
    told.add(gateway.devices()[1].problem)
    assert told == {reason}


def test_one_look_that_is_missed_is_no_news(fleet, bundle, monkeypatch, caplog):
    caplog.set_level("INFO")
    silent = Silent(monkeypatch)
    monkeypatch.setattr(reconcile, "INFO_DEADLINE_S", 0.1)
    monkeypatch.setattr(reconcile, "LOOK_S", 0.1)
    fleet.device("dev-1"), fleet.device("dev-2")
    fleet.gateway()
    silent.left, asked = 1, silent.asked
    eventually(lambda: silent.asked >= asked + 5)  # the one that missed it was asked again
    assert "is not as planned" not in caplog.text
    silent.left = 1000
    eventually(lambda: "is not as planned: the device does not answer" in caplog.text)


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


def test_a_device_that_has_become_slower_than_the_learned_deadline_is_waited_for_again(fleet, bundle, monkeypatch):
    """It answers every request after the deadline, so no answer tells how long the deadline should be."""
    monkeypatch.setattr(deadline, "FLOOR_S", 0.1)
    monkeypatch.setattr(deadline, "LONGEST_S", 20.0)
    fleet.device("dev-1")
    agent = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=None)
    images = some_images(bundle)
    for _ in range(2 * deadline.ENOUGH):
        gateway.predict(images), gateway.predict(images[:1])
    engines, run = [held.engine for held in agent._held.values()], SubModelEngine.run_in_chunks
    slow = threading.Event()  # is never set

    def run_slowly(engine, images, **how):
        slow.wait(0.3 if engine in engines else 0.0)
        return run(engine, images, **how)

    monkeypatch.setattr(SubModelEngine, "run_in_chunks", run_slowly)
    gateway.predict(images)
    eventually(lambda: not any(gateway.predict(images).degraded for _ in range(5)), 60)


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
