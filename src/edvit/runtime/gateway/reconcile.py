"""The reconciler brings the devices to the plan: it loads and tries the planned sub-models on each that appears."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edvit.bundle import Bundle, Manifest
from edvit.errors import EdvitError, MemoryLimitError, ServiceError, UnavailableError, WireError
from edvit.runtime.gateway.gather import Expected, gather
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.runtime.wire.messages import DeviceInfo, InfoRequest, LoadRequest, RefuseRequest, SubModelSpec
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ALIVE, ANY, INFO, LOAD, REFUSE
from edvit.runtime.wire.transport import Failure, Replies, Reply, Transport, Waits

log = logging.getLogger(__name__)

INFO_DEADLINE_S = 1.0
PROBE_DEADLINE_S = 10.0
PROBE_PAUSES_S = (0.0, 0.05, 0.2, 1.0)
"""Before each try: the network may take a moment to tell of a key that is newly served."""
LOAD_BASE_S = 60.0
SLOWEST_LINK_BYTES_PER_S = 50_000
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 5.0


@dataclass(frozen=True)
class DeviceStatus:
    """What the gateway knows of one device."""

    name: str
    alive: bool
    planned: tuple[int, ...]
    """Ids of the sub-models the plan places on it; empty for a spare device."""
    submodels: tuple[int, ...]
    """Ids of the sub-models it holds, ready to answer."""
    memory_bytes: int
    """Memory of what it holds, as the plan counts it."""
    memory_limit_bytes: int | None
    """The smaller of its limit in the fleet and the one it was started with; None where there is neither."""
    host: str | None
    pid: int | None
    problem: str | None
    """Why it does not hold what is planned, one line."""
    in_fleet: bool = True
    """False for a device that is alive under a name that the fleet does not have."""


@dataclass
class _DeviceState:
    planned: tuple[int, ...] = ()
    memory_limit_bytes: int | None = None
    present: set[str] = field(default_factory=set)
    """Every process of this name that the network says is alive."""
    instance: str | None = None
    """The one that is taken for the device; None while there is none."""
    loading: str | None = None
    """The process that a thread is loading."""
    info: DeviceInfo | None = None
    ready: bool = False
    problem: str | None = None


class Reconciler:
    """Keeps every device of the plan loaded, from the moment it is made until it is closed. Thread-safe."""

    def __init__(self, bundle: Bundle, transport: Transport, encoding: ImageEncoding) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._transport = transport
        self._encoding = encoding
        self._fleet = manifest.plan.fleet.name
        self._devices: dict[str, _DeviceState] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._waits = Waits()
        self._threads: set[threading.Thread] = set()
        for device in manifest.plan.fleet.devices:
            planned = tuple(sorted(line.submodel for line in manifest.plan.placed if line.device == device.name))
            self._devices[device.name] = _DeviceState(planned=planned, memory_limit_bytes=device.memory_bytes)
        self.expected = {
            line.submodel: Expected(line.device, manifest.submodel(line.submodel).feature_dim)
            for line in manifest.plan.placed
        }
        """Which device answers for which sub-model."""
        pattern = ALIVE.key(fleet=self._fleet, device=ANY, instance=ANY)
        self._watching = transport.watch(pattern, self._on_change)

    def close(self) -> None:
        """Stop watching, give up what is asked of devices, and wait for the threads that ask."""
        self._closing.set()
        self._watching.close()
        self._waits.close()
        with self._changed:
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def status(self) -> tuple[DeviceStatus, ...]:
        """Every device of the fleet in its order, then those that are alive but not in it."""
        with self._changed:
            return tuple(
                _status(name, device)
                for name, device in self._devices.items()
                if device.memory_limit_bytes is not None or device.instance is not None
            )

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether every planned sub-model was ready within `timeout_s` seconds."""

        def all_ready() -> bool:
            return all(device.ready for device in self._devices.values() if device.planned)

        with self._changed:
            self._changed.wait_for(lambda: self._closing.is_set() or all_ready(), timeout_s)
            return all_ready()

    def look_again(self, submodels: set[int]) -> None:
        """Load again where these sub-models were thought ready, but did not answer."""
        with self._changed:
            for name in {self.expected[submodel].device for submodel in submodels}:
                device = self._devices[name]
                if device.ready:
                    device.ready = False
                    self._load(name, device)

    def _on_change(self, key: str, alive: bool) -> None:
        try:
            parts = ALIVE.parts(key)
        except WireError:
            return
        name, instance = parts["device"], parts["instance"]
        with self._changed:
            device = self._devices.setdefault(name, _DeviceState())
            (device.present.add if alive else device.present.discard)(instance)
            if alive and device.instance is None:
                self._adopt(name, device, instance)
            elif alive and device.instance != instance:
                self._in_thread(self._settle, name, device, instance)
            elif not alive and device.instance == instance:
                log.info("device %s is gone", name)
                device.instance, device.info, device.ready, device.problem = None, None, False, None
            self._changed.notify_all()

    def _adopt(self, name: str, device: _DeviceState, instance: str) -> None:
        log.info("device %s is here", name)
        device.instance, device.info, device.ready, device.problem = instance, None, False, None
        self._load(name, device)

    def _load(self, name: str, device: _DeviceState) -> None:
        """Start loading unless that is under way."""
        if device.loading != device.instance and device.instance is not None:
            device.loading = device.instance
            self._in_thread(self._keep_loading, name, device, device.instance)

    def _in_thread(
        self, work: Callable[[str, _DeviceState, str], None], name: str, device: _DeviceState, instance: str
    ) -> None:
        """Call it with the lock held."""

        def run() -> None:
            try:
                work(name, device, instance)
            finally:
                with self._changed:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=f"reconcile {name}", daemon=True)
        if not self._closing.is_set():
            self._threads.add(thread)
            thread.start()

    # --- what the threads ask; closing ends it ----------------------------------------------------------

    def _ask(self, key: str, packet: Packet, *, deadline_s: float) -> Replies:
        return self._waits.add(self._transport.ask(key, packet, deadline_s=deadline_s))

    def _ask_each(self, keys: Sequence[str], packet: Packet, *, deadline_s: float) -> Replies:
        return self._waits.add(self._transport.ask_each(keys, packet, deadline_s=deadline_s))

    # --- in threads of their own -----------------------------------------------------------------------

    def _settle(self, name: str, device: _DeviceState, newcomer: str) -> None:
        """Decide which of two processes keeps the name: the older one if it answers, otherwise the newcomer."""
        older = device.instance
        if older is not None and older in self._infos(name):
            log.warning("a second device %s was refused", name)
            packet = encode(RefuseRequest(instance=newcomer))
            list(self._ask(REFUSE.key(fleet=self._fleet, device=name), packet, deadline_s=INFO_DEADLINE_S))
            return
        with self._changed:
            # The newcomer may have gone meanwhile, and the network reports that only once.
            if newcomer in device.present and device.instance in (older, None):
                self._adopt(name, device, newcomer)
                self._changed.notify_all()

    def _infos(self, name: str) -> dict[str, DeviceInfo]:
        """Ask every process of that name for its `DeviceInfo`; the answers by instance."""
        found = {}
        key = INFO.key(fleet=self._fleet, device=name)
        for reply in self._ask(key, encode(InfoRequest()), deadline_s=INFO_DEADLINE_S):
            with contextlib.suppress(WireError):
                if isinstance(reply, Reply):
                    info = decode(DeviceInfo, reply.packet)
                    found[info.instance] = info
        return found

    def _keep_loading(self, name: str, device: _DeviceState, instance: str) -> None:
        """Load and try one device until it is ready, gone, or refuses for good."""
        pause = RETRY_FIRST_S
        while not self._closing.is_set():
            info, problem = self._attempt(name, device, instance)
            with self._changed:
                current = device.instance == instance
                if current:
                    device.info = info or device.info
                    device.ready = problem is None
                    device.problem = None if problem is None else str(problem)
                # A refusal over memory stays one: asking again gives the device no more memory.
                done = not current or problem is None or isinstance(problem, MemoryLimitError)
                if done and device.loading == instance:
                    device.loading = None
                self._changed.notify_all()
            if current and problem is not None:
                # No warning, as it comes again with every try; `status` shows it as the problem of the device.
                log.info("device %s is not ready: %s", name, problem)
            if done:
                return
            self._closing.wait(pause)
            pause = min(2 * pause, RETRY_MOST_S)

    def _attempt(self, name: str, device: _DeviceState, instance: str) -> tuple[DeviceInfo | None, EdvitError | None]:
        info = None
        try:
            info = self._load_once(name, device, instance)
            if device.planned:
                self._try_once(name, device)
        except EdvitError as error:
            # The status shows the host and the limit of a device that is not ready, too.
            with contextlib.suppress(EdvitError):
                info = info or self._infos(name).get(instance)
            return info, error
        except Exception:
            log.exception("loading device %s failed", name)
            return info, ServiceError("internal error; see the gateway's log")
        return info, None

    def _load_once(self, name: str, device: _DeviceState, instance: str) -> DeviceInfo:
        manifest = self._bundle.manifest
        specs = tuple(_spec(manifest, submodel) for submodel in device.planned)
        deadline_s = LOAD_BASE_S + sum(spec.bytes for spec in specs) / SLOWEST_LINK_BYTES_PER_S
        request = LoadRequest(
            instance=instance,
            bundle=self._bundle.digest,
            submodels=specs,
            memory_limit_bytes=device.memory_limit_bytes,
            deadline_s=deadline_s,
        )
        problem: EdvitError = UnavailableError("the device did not answer the request to load")
        key = LOAD.key(fleet=self._fleet, device=name)
        for reply in self._ask(key, encode(request), deadline_s=deadline_s):
            if isinstance(reply, Failure):
                problem = reply.error
                continue
            info = decode(DeviceInfo, reply.packet)
            if (info.device, info.instance) != (name, instance):
                continue
            held = {submodel.id: submodel.sha256 for submodel in info.submodels}
            if info.bundle != self._bundle.digest or held != {spec.id: spec.sha256 for spec in specs}:
                raise WireError("the device reports other sub-models than it was told to load")
            return info
        raise problem

    def _try_once(self, name: str, device: _DeviceState) -> None:
        """Make a first inference from end to end, so that a device that counts as ready has answered once."""
        images = np.zeros((1, *self._bundle.manifest.preprocessing.shape), np.uint8)
        expected = {submodel: self.expected[submodel] for submodel in device.planned}
        for pause in PROBE_PAUSES_S:
            self._closing.wait(pause)
            tried = gather(
                self._ask_each,
                self._fleet,
                self._bundle.digest,
                images,
                expected,
                encoding=self._encoding,
                deadline_s=PROBE_DEADLINE_S,
            )
            if len(tried.features) == len(expected):
                return
            if tried.problems:
                raise tried.problems[0]
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


def _status(name: str, device: _DeviceState) -> DeviceStatus:
    info = device.info
    limits = [device.memory_limit_bytes, info.memory_limit_bytes if info is not None else None]
    return DeviceStatus(
        name=name,
        alive=device.instance is not None,
        planned=device.planned,
        submodels=tuple(submodel.id for submodel in info.submodels) if info is not None and device.ready else (),
        memory_bytes=info.memory_bytes if info is not None else 0,
        memory_limit_bytes=min((limit for limit in limits if limit is not None), default=None),
        host=info.host if info is not None else None,
        pid=info.pid if info is not None else None,
        problem=device.problem,
        in_fleet=device.memory_limit_bytes is not None,
    )
