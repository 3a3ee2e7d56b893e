"""The reconciler brings the devices to the plan, and sees which of them answer.

One thread for each device of the fleet looks at it, loads what it should hold, tries it, and probes it when it hangs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from edvit.bundle import Bundle, Manifest
from edvit.errors import (
    EdvitError,
    MemoryLimitError,
    ServiceError,
    UnavailableError,
    VersionError,
    WireError,
    printable,
)
from edvit.runtime.gateway.deadline import Deadline
from edvit.runtime.gateway.device_state import SETTLE_FIRST_S, DeviceState, DeviceStatus, Refusal, stranger
from edvit.runtime.gateway.gather import Expected, Gathered, gather
from edvit.runtime.gateway.lease import Lease
from edvit.runtime.gateway.mending import MEND_AFTER_S, Mending
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.runtime.wire.messages import DeviceInfo, InfoRequest, LoadRequest, RefuseRequest, SubModelSpec
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ALIVE, ANY, INFO, LOAD, REFUSE
from edvit.runtime.wire.transport import Failure, Replies, Reply, Transport, Waits

log = logging.getLogger(__name__)

INFO_DEADLINE_S = 1.0
PROBE_FIRST_S = 10.0
"""A first inference may take so long; a probe of a device that was ready before has the longest deadline of a request.
"""
PROBE_SUSPECTED_S = 2.0
"""A device that other devices' copies have overtaken has no longer."""
PROBE_PAUSES_S = (0.0, 0.05, 0.2)
"""Before each try: the network may take a moment to tell of a key that is newly served."""
LOAD_BASE_S = 60.0
SLOWEST_LINK_BYTES_PER_S = 50_000
LOOK_S = 5.0
"""A device that answers is looked at so often: it may have been told something else, or have lost its sub-models."""
SETTLE_MOST_S = 5.0
"""Pauses between looks at which of several processes of one name answer double up to this."""
MAX_INSTANCES = 16
"""Processes of one name that are known; of more, the oldest are forgotten."""
MAX_STRANGERS = 1000
"""Devices outside the fleet that are counted."""


class Reconciler:
    """Keeps every device of the fleet loaded, from the moment it is made until it is closed. Thread-safe.

    Args:
        lease: which gateway is in charge. The caller closes it, after the reconciler.
        deadline: of predictions. It is told what probes take that were longer than it.
        mend_after_s: the grace time, seconds.
        replicas: 2 to keep a second copy of every sub-model where there is room.
        on_doubt: called with a device that is left alone, or suspected, from now on; must not wait.
        beside: digests of other bundles whose sub-models devices keep.
        away: names of devices that are known to be gone for longer than the grace time.
    """

    def __init__(
        self,
        bundle: Bundle,
        transport: Transport,
        encoding: ImageEncoding,
        *,
        lease: Lease,
        deadline: Deadline,
        mend_after_s: float = MEND_AFTER_S,
        replicas: int = 1,
        on_doubt: Callable[[str], None] = lambda name: None,
        beside: tuple[str, ...] = (),
        away: Collection[str] = (),
    ) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._transport = transport
        self._encoding = encoding
        self._fleet = manifest.plan.fleet
        self._deadline = deadline
        self._mend_after_s = mend_after_s
        self._on_doubt = on_doubt
        self._beside = beside
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._waits = Waits()
        self._strangers: dict[str, set[str]] = {}
        self._devices: dict[str, DeviceState] = {}
        now = time.monotonic()
        for device in self._fleet.devices:
            planned = tuple(sorted(line.submodel for line in manifest.plan.placed if line.device == device.name))
            self._devices[device.name] = DeviceState(device, planned, planned, since=now, away=device.name in away)
        self._mending = Mending(bundle, self._devices, after_s=mend_after_s, replicas=replicas)
        self.lease = lease
        self._told = lease.tell(self._wake)
        pattern = ALIVE.key(fleet=self._fleet.name, device=ANY, instance=ANY)
        self._watching = transport.watch(pattern, self._on_token)
        self._threads = [
            threading.Thread(target=self._keep, args=(name, device), name=f"reconcile {name}", daemon=True)
            for name, device in self._devices.items()
        ]
        self._threads.append(threading.Thread(target=self._mend_from_time_to_time, name="reconcile", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching, give up what is asked of devices, and wait for the threads that ask."""
        self._closing.set()
        self._watching.close()
        self._waits.close()
        self._wake()
        for thread in self._threads:
            thread.join()
        self._told.close()

    def keep_beside(self, bundles: tuple[str, ...]) -> None:
        """From now on devices keep sub-models of these other bundles, and drop those of all others."""
        now = time.monotonic()
        with self._changed:
            self._beside = bundles
            for device in self._devices.values():
                device.refusal, device.look_at = None, now
            self._changed.notify_all()

    def lacking(self) -> dict[str, tuple[int, ...]]:
        """By device: the sub-models that it shall hold now and has not answered a first inference of."""
        with self._changed:
            return {
                name: tuple(one for one in device.target if one not in device.ready)
                for name, device in self._devices.items()
            }

    def dismiss(self, names: Iterable[str]) -> None:
        """Tell these devices once to drop everything: no bundle names them any more."""
        for name in names:
            device = self._devices[name]
            with self._changed:
                instance, device.target = device.instance, ()
            if instance is not None:
                with contextlib.suppress(EdvitError):
                    self._load(name, device, instance, (), beside=())

    def status(self) -> tuple[DeviceStatus, ...]:
        """Every device of the fleet in its order, then those that are there without being in it."""
        with self._changed:
            return (*(device.status for device in self._devices.values()), *map(stranger, sorted(self._strangers)))

    def routes(self) -> dict[int, Expected]:
        """The device that is asked for each sub-model: the planned one if it is ready, else another that holds it.

        One that is suspected comes after one that is not.
        """
        with self._changed:
            return self._mending.routes()

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether every sub-model was ready within `timeout_s` seconds."""

        def all_ready() -> bool:
            return len(self._mending.routes()) == len(self._bundle.manifest.submodels)

        with self._changed:
            self._changed.wait_for(lambda: self._closing.is_set() or all_ready(), timeout_s)
            return all_ready()

    def learn(self, expected: Mapping[int, Expected], gathered: Gathered, *, fair: bool) -> bool:
        """Take note of which devices answered a request, and which did not.

        Args:
            expected: what was asked of whom.
            fair: whether they had enough time, so that a late answer is theirs to answer for.

        Returns:
            Whether a device seems to hang; otherwise those that are late have much to do.
        """
        now = time.monotonic()
        hangs = False
        with self._changed:
            for name in gathered.asked:
                device = self._devices[name]
                first = {submodel for submodel, entry in expected.items() if entry.device == name}
                given = gathered.given.get(name, set())
                before = device.breaker
                if given and first <= given:
                    device.breaker, device.answers = before.answered(now), True
                elif name in gathered.silent:
                    hangs = True  # it is left alone already
                elif name in gathered.wrong:
                    device.breaker = before.failed_request(now)
                elif name in gathered.ended:
                    device.breaker = before.lost(now)  # it ended the request itself, or died
                elif not first:
                    continue  # asked as the second, and the first one was faster
                elif gathered.late and fair:
                    device.breaker = before.missed(gathered.asked_at, now)
                    hangs = hangs or device.breaker != before or not before.closed
                elif first <= set(gathered.features):
                    device.breaker = before.overtaken(gathered.asked_at, now)
                if before.closed and not device.breaker.closed:
                    self._left_alone(name, device, gathered, now)
                elif device.breaker.suspected and not before.suspected:
                    log.info("device %s is late again and again: second copies are asked first, and it is tried", name)
                    device.look_at = now
                    self._on_doubt(name)
                    self._changed.notify_all()
        return hangs

    def fell_silent(self, names: Iterable[str]) -> None:
        """Leave these devices alone until they answer again: they have been asked, and say nothing for too long."""
        now = time.monotonic()
        with self._changed:
            for name in names:
                device = self._devices[name]
                if device.breaker.closed:
                    device.breaker = device.breaker.lost(now)
                    self._left_alone(name, device, Gathered(late=True), now)

    def _left_alone(self, name: str, device: DeviceState, gathered: Gathered, now: float) -> None:
        device.since = now
        device.answers = not gathered.late or name in gathered.wrong
        if name in gathered.wrong:
            device.problem = "the device gives wrong answers"
        elif gathered.late:
            device.problem = "the device does not answer requests in time"
        else:
            device.problem = "the device has ended requests without an answer"
        log.warning("device %s is left alone until it answers again: %s", name, device.problem)
        self._on_doubt(name)
        self._changed.notify_all()

    # --- who is there ----------------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_token(self, key: str, alive: bool) -> None:
        try:
            parts = ALIVE.parts(key)
        except WireError:
            return
        name, instance = parts["device"], parts["instance"]
        now = time.monotonic()
        with self._changed:
            device = self._devices.get(name)
            if device is None:
                self._count_stranger(printable(name), instance, alive)
                return
            device.settle_at, device.settle_pause_s = now, SETTLE_FIRST_S
            if alive:
                device.present[instance] = None
                if len(device.present) > MAX_INSTANCES:
                    del device.present[next(one for one in device.present if one != device.instance)]
                if device.instance is None:
                    log.info("device %s is here", name)
                    device.reset(instance, now)
            else:
                device.present.pop(instance, None)
                if device.instance == instance:
                    log.info("device %s is gone", name)
                    device.reset(next(iter(device.present), None), now)
            self._changed.notify_all()

    def _count_stranger(self, name: str, instance: str, alive: bool) -> None:
        if not alive:
            processes = self._strangers.get(name, set())
            processes.discard(instance)
            if not processes:
                self._strangers.pop(name, None)
        elif name in self._strangers or len(self._strangers) < MAX_STRANGERS:
            processes = self._strangers.setdefault(name, set())
            if len(processes) < MAX_INSTANCES:
                processes.add(instance)

    # --- mending ---------------------------------------------------------------------------------------

    def _mend_from_time_to_time(self) -> None:
        while not self._closing.wait(min(0.25, self._mend_after_s / 4)):
            in_charge = self.lease.in_charge() is None
            with self._changed:
                now = time.monotonic()
                self._mending.note_who_is_away(now)
                if in_charge and self._mending.mend(now):
                    self._changed.notify_all()

    # --- one thread for each device --------------------------------------------------------------------

    def _keep(self, name: str, device: DeviceState) -> None:
        while not self._closing.is_set():
            with self._changed:
                now = time.monotonic()
                settle_at = device.settle_at if len(device.present) > 1 else math.inf
                look_at = math.inf
                if device.instance is not None:
                    look_at = device.look_at if device.breaker.closed else device.breaker.probe_at
                if now < min(settle_at, look_at):
                    wait_s = min(settle_at, look_at) - now
                    self._changed.wait(None if wait_s == math.inf else wait_s)
                    continue
            if settle_at <= look_at:
                self._settle(name, device)
            else:
                self._look(name, device)

    def _ask(self, key: str, packet: Packet, *, deadline_s: float) -> Replies:
        return self._waits.add(self._transport.ask(key, packet, deadline_s=deadline_s))

    def _ask_each(
        self, keys: Sequence[str], packet: Packet, *, deadline_s: float, into: Replies | None = None
    ) -> Replies:
        return self._waits.add(self._transport.ask_each(keys, packet, deadline_s=deadline_s, into=into))

    def _infos(self, name: str) -> dict[str, DeviceInfo]:
        """Ask every process of that name for its `DeviceInfo`; the answers by instance."""
        found = {}
        key = INFO.key(fleet=self._fleet.name, device=name)
        for reply in self._ask(key, encode(InfoRequest()), deadline_s=INFO_DEADLINE_S):
            if isinstance(reply, Reply):
                info = decode(DeviceInfo, reply.packet)
                found[info.instance] = info
            elif isinstance(reply.error, VersionError):
                raise reply.error
        return found

    def _settle(self, name: str, device: DeviceState) -> None:
        """Decide which process keeps the name: the one that has it if it answers, else the oldest that does."""
        answering: set[str] = set()
        with contextlib.suppress(WireError):
            answering = set(self._infos(name))
        with self._changed:
            now = time.monotonic()
            device.settle_at = now + device.settle_pause_s
            device.settle_pause_s = min(2 * device.settle_pause_s, SETTLE_MOST_S)
            # One may have gone meanwhile, and the network reports that only once.
            able = [instance for instance in device.present if instance in answering]
            if able and device.instance not in able:
                log.info("another process takes the place of device %s", name)
                device.reset(able[0], now)
            others = [instance for instance in able if instance != device.instance]
            self._changed.notify_all()
        for instance in others:
            log.warning("a second device %s was refused", name)
            packet = encode(RefuseRequest(instance=instance))
            list(self._ask(REFUSE.key(fleet=self._fleet.name, device=name), packet, deadline_s=INFO_DEADLINE_S))

    def _look(self, name: str, device: DeviceState) -> None:
        """See what the device holds, load what it lacks, and try it unless it has answered already."""
        with self._changed:
            instance, target, suspected = device.instance, device.target, device.breaker.suspected
        if instance is None:
            return
        problem: EdvitError | None = None
        try:
            self._bring(name, device, instance, suspected)
        except EdvitError as error:
            problem = error
        except Exception:
            log.exception("looking at device %s failed", name)
            problem = ServiceError("internal error; see the gateway's log")
        with self._changed:
            if device.instance != instance or self._closing.is_set():
                return
            now = time.monotonic()
            known, device.problem = device.problem, None if problem is None else str(problem)
            suspicion_is_new = device.breaker.suspected and not suspected
            device.look_at = now if suspicion_is_new or device.target != target else now + LOOK_S
            if problem is None and not device.breaker.closed:
                device.breaker, device.since, device.seen = device.breaker.passed(now), now, True
            elif problem is not None and not device.breaker.closed:
                device.breaker = device.breaker.failed(now)
            elif problem is None and device.breaker.suspected and not suspicion_is_new:
                device.breaker = device.breaker.answered(now)
            elif problem is not None and suspected and device.breaker.suspected:
                device.answers, device.breaker, device.since = False, device.breaker.lost(now), now
            elif problem is not None and not device.answers:
                device.look_at = now
                device.breaker = device.breaker.failed_request(now)
                if device.breaker.closed:  # one look that is missed is no news: it is asked on
                    device.answers, device.problem = True, known
                else:
                    device.since = now
            if device.problem not in (None, known):
                log.info("device %s is not as planned: %s", name, device.problem)
            self._changed.notify_all()

    def _bring(self, name: str, device: DeviceState, instance: str, suspected: bool) -> None:
        """Raises EdvitError where the device does not hold its target in the end, or does not answer."""
        info = self._infos(name).get(instance)
        self._take(name, device, instance, info)
        if info is None:
            raise UnavailableError("the device does not answer")
        target = device.target
        specs = tuple(_spec(self._bundle.manifest, submodel) for submodel in target)
        other = self.lease.in_charge()
        if other is not None:
            self.lease.check()
            if not self._held(info) and target:
                raise UnavailableError(f"the gateway on {other.host}, which is in charge, has not loaded it yet")
        elif self._held(info) != {spec.id: spec.sha256 for spec in specs} or self._is_foreign(info):
            if device.refusal is not None and device.refusal.target == target:
                raise MemoryLimitError(device.refusal.reason)
            try:
                info = self._load(name, device, instance, specs, self._beside)
            except MemoryLimitError as error:
                with self._changed:
                    if device.instance == instance:
                        device.refusal = Refusal(target, str(error))
                raise
            self._take(name, device, instance, info)
        held = frozenset(self._held(info))
        if suspected:
            self._try(name, held, min(self._deadline.of(1), PROBE_SUSPECTED_S))
        elif held and not (device.breaker.closed and held <= device.tried):
            took_s = self._try(name, held, self._deadline.longest_s if device.seen else PROBE_FIRST_S)
            if took_s > self._deadline.of(1):
                # It may have hung and gone on in the midst of that: what it takes now tells.
                self._deadline.probed(self._try(name, held, self._deadline.longest_s))
        with self._changed:
            if device.instance == instance:
                device.tried = held

    def _held(self, info: DeviceInfo) -> dict[int, str]:
        """The digest of each sub-model of this bundle that the device holds."""
        known = {submodel.id: submodel.model.sha256 for submodel in self._bundle.manifest.submodels}
        return {one: sha256 for one, sha256 in info.held(self._bundle.digest).items() if known.get(one) == sha256}

    def _is_foreign(self, info: DeviceInfo) -> bool:
        """Whether the device holds sub-models of a bundle that it shall not hold."""
        return not {one.bundle for one in info.submodels} <= {self._bundle.digest, *self._beside}

    def _take(self, name: str, device: DeviceState, instance: str, info: DeviceInfo | None) -> None:
        """Note what a device says of itself, or that it says nothing."""
        in_charge = self.lease.in_charge() is None
        with self._changed:
            if device.instance != instance:
                return
            device.answers = info is not None
            if info is None:
                return
            held = frozenset(self._held(info))
            first = device.info is None
            device.info, device.tried = info, device.tried & held
            if first or not in_charge:
                self._mending.adopt(name, held)
            self._changed.notify_all()

    def _load(
        self,
        name: str,
        device: DeviceState,
        instance: str,
        specs: tuple[SubModelSpec, ...],
        beside: tuple[str, ...],
    ) -> DeviceInfo:
        deadline_s = LOAD_BASE_S + sum(spec.bytes for spec in specs) / SLOWEST_LINK_BYTES_PER_S
        request = LoadRequest(
            gateway=self.lease.instance,
            gateway_host=self.lease.host,
            instance=instance,
            bundle=self._bundle.digest,
            submodels=specs,
            beside=beside,
            memory_limit_bytes=device.device.memory_bytes,
            deadline_s=deadline_s,
        )
        problem: EdvitError = UnavailableError("the device did not answer the request to load")
        key = LOAD.key(fleet=self._fleet.name, device=name)
        for reply in self._ask(key, encode(request), deadline_s=deadline_s):
            if isinstance(reply, Failure):
                problem = reply.error
                continue
            info = decode(DeviceInfo, reply.packet)
            if (info.device, info.instance) != (name, instance):
                continue
            if info.held(self._bundle.digest) != {spec.id: spec.sha256 for spec in specs}:
                raise WireError("the device reports other sub-models than it was told to load")
            return info
        raise problem

    def _try(self, name: str, submodels: frozenset[int], deadline_s: float) -> float:
        """Make an inference from end to end, so that a device that counts as ready has answered.

        Returns:
            The seconds it took.
        """
        manifest = self._bundle.manifest
        images = np.zeros((1, *manifest.preprocessing.shape), np.uint8)
        expected = {one: Expected(name, manifest.submodel(one).feature_dim) for one in submodels}
        for pause in PROBE_PAUSES_S:
            self._closing.wait(pause)
            start = time.monotonic()
            tried = gather(
                self._ask_each,
                self._fleet.name,
                self._bundle.digest,
                images,
                expected,
                encoding=self._encoding,
                deadline_s=deadline_s,
            )
            if len(tried.features) == len(expected):
                return time.monotonic() - start
            if tried.problems:
                raise tried.problems[0]
            if tried.late:
                break
        raise UnavailableError("the device did not answer a first inference")


def _spec(manifest: Manifest, submodel_id: int) -> SubModelSpec:
    submodel = manifest.submodel(submodel_id)
    return SubModelSpec(
        id=submodel.id,
        sha256=submodel.model.sha256,
        bytes=submodel.model.bytes,
        memory_bytes=submodel.peak_memory_bytes,
        channels=manifest.preprocessing.channels,
        image_size=manifest.preprocessing.image_size,
        feature_dim=submodel.feature_dim,
    )
