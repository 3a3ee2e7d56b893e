"""The device agent: announces itself, loads the sub-models that the gateway plans for it, and answers with features."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edvit import __version__
from edvit.errors import (
    ConfigError,
    DeadlineError,
    EdvitError,
    FleetTakenError,
    MemoryLimitError,
    UnavailableError,
    WireError,
)
from edvit.runtime.device.cache_folder import HeldFile
from edvit.runtime.device.inference_log import Inference, inference_logged
from edvit.runtime.device.model_cache import ModelCache, fetch_part
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import decode_images
from edvit.runtime.wire.messages import (
    DeviceInfo,
    HeldSubModel,
    InferReply,
    InferRequest,
    InfoRequest,
    LoadRequest,
    RefuseReply,
    RefuseRequest,
    SubModelSpec,
    to_payload,
)
from edvit.runtime.wire.topics import ALIVE, ANY, GATEWAY_ALIVE, INFER, INFO, LOAD, REFUSE
from edvit.runtime.wire.transport import Registration, Reply, Request, Transport

log = logging.getLogger(__name__)

ALONE_FIRST_S = 10.0
ALONE_S = 60.0
"""Seconds without a gateway until the device says so, and until it says so again."""
MAX_GATEWAYS = 16
"""Gateways that a device knows of; more are ignored."""


@dataclass(frozen=True)
class Held:
    """A sub-model that is loaded."""

    spec: SubModelSpec
    engine: SubModelEngine
    file: HeldFile
    """Stays in the cache as long as this is referred to."""


class DeviceAgent:
    """One device of a fleet, from its making until it is closed.

    Args:
        name: the device's name in the fleet.
        fleet: the fleet's name.
        transport: how to reach the gateway. The caller closes it, after the agent.
        cache: folder for model files.
        cache_limit_bytes: for all files there together; None for no limit.
        memory_limit_bytes: for all sub-models together; the gateway's limit holds as well. None for no own limit.
        threads: CPU threads of one inference.
        say: called with one line for a person at the device.

    Raises:
        ConfigError: the cache folder cannot be made.
    """

    def __init__(
        self,
        name: str,
        fleet: str,
        transport: Transport,
        *,
        cache: Path,
        cache_limit_bytes: int | None = None,
        memory_limit_bytes: int | None = None,
        threads: int = 1,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(8)
        self._fleet = fleet
        self._transport = transport
        self._cache = ModelCache(cache, cache_limit_bytes)
        self._memory_limit_bytes = memory_limit_bytes
        self._threads = threads
        self._say = say
        self._lock = threading.Lock()
        self._held: dict[tuple[str, int], Held] = {}
        """By the digest of the bundle and the id of the sub-model."""
        self._inferring: Registration | None = None
        self._closed = False
        self._gateways: set[str] = set()
        self._told_by: LoadRequest | None = None
        self._trouble: str | None = None
        # A signal handler may put into a SimpleQueue; setting an Event there could lock up.
        self._end: queue.SimpleQueue[EdvitError | None] = queue.SimpleQueue()
        here = {"fleet": fleet, "device": name}
        self._registrations = [
            transport.serve(INFO.key(**here), self._on_info),
            transport.serve(LOAD.key(**here), self._on_load),
            transport.serve(REFUSE.key(**here), self._on_refuse),
            transport.watch(GATEWAY_ALIVE.key(fleet=fleet, instance=ANY), self._on_gateway),
            # It is announced last: the gateway asks as soon as it sees the device.
            transport.announce(ALIVE.key(**here, instance=self.instance)),
        ]

    def run(self, alone: str = "no gateway yet") -> None:
        """Wait until `stop` is called.

        Args:
            alone: the line to say from time to time while there is no gateway.

        Raises:
            ConfigError: another device of the fleet has the same name.
        """
        pause = ALONE_FIRST_S
        while True:
            try:
                error = self._end.get(timeout=pause)
            except queue.Empty:
                if self._gateways:
                    pause = ALONE_FIRST_S
                else:
                    self._say(alone)
                    pause = ALONE_S
                continue
            if error is not None:
                raise error
            return

    def stop(self) -> None:
        """Let `run` return; safe to call from a signal handler."""
        self._end.put(None)

    def close(self) -> None:
        """Leave the fleet. Whoever waits for an answer from here is told at once."""
        with self._lock:
            self._closed = True
            self._serve_inference(False)
        for registration in reversed(self._registrations):
            registration.close()

    def info(self) -> DeviceInfo:
        """What this device is and holds."""
        with self._lock:
            return DeviceInfo(
                device=self.name,
                instance=self.instance,
                version=__version__,
                host=socket.gethostname(),
                pid=os.getpid(),
                threads=self._threads,
                submodels=tuple(
                    HeldSubModel(
                        bundle=bundle, id=submodel, sha256=held.spec.sha256, memory_bytes=held.spec.memory_bytes
                    )
                    for (bundle, submodel), held in self._held.items()
                ),
                memory_limit_bytes=self._memory_limit_bytes,
            )

    # --- answers, each topic in a thread of its own ----------------------------------------------------

    def _on_info(self, request: Request) -> Iterator[Reply]:
        decode(InfoRequest, request.packet)
        yield Reply(INFO.key(fleet=self._fleet, device=self.name), encode(self.info()))

    def _on_refuse(self, request: Request) -> Iterator[Reply]:
        if decode(RefuseRequest, request.packet).instance != self.instance:
            return
        yield Reply(REFUSE.key(fleet=self._fleet, device=self.name), encode(RefuseReply()))
        self._end.put(
            ConfigError(
                f"a device named {self.name} is already running in fleet {self._fleet}: "
                "choose another --name, or stop the other device"
            )
        )

    def _on_gateway(self, key: str, alive: bool) -> None:
        try:
            instance = GATEWAY_ALIVE.parts(key)["instance"]
        except WireError:
            return
        if not alive:
            self._gateways.discard(instance)
        elif len(self._gateways) < MAX_GATEWAYS:
            self._gateways.add(instance)

    def _on_load(self, request: Request) -> Iterator[Reply]:
        asked = decode(LoadRequest, request.packet)
        if asked.instance != self.instance:
            raise UnavailableError(f"device {self.name} has restarted since the gateway found it")
        try:
            self._check_gateway(asked)
            self._check_memory(asked)
            self._load(asked, until=request.arrived + asked.deadline_s)
        except EdvitError as error:
            self._say_once(str(error))
            raise
        self._trouble = None
        self._told_by = asked
        if not asked.submodels:
            self._say("the gateway plans no sub-model for this device")
        yield Reply(LOAD.key(fleet=self._fleet, device=self.name), encode(self.info()))

    def _on_infer(self, request: Request) -> Iterator[Reply]:
        asked = decode(InferRequest, request.packet)
        with inference_logged(self.name, asked) as line:
            yield from self._infer(request, asked, line)

    def _infer(self, request: Request, asked: InferRequest, line: Inference) -> Iterator[Reply]:
        until = request.arrived + asked.deadline_s
        which = INFER.parts(request.key)["submodel"]
        with self._lock:
            of_bundle = [held for (bundle, _), held in self._held.items() if bundle == asked.bundle]
        if not of_bundle:
            raise UnavailableError(f"device {self.name} holds no sub-model of this bundle")
        chosen = [
            held
            for held in of_bundle
            if which in (ANY, str(held.spec.id)) and (asked.submodels is None or held.spec.id in asked.submodels)
        ]
        if time.monotonic() > until:
            line.outcome = "dropped"
            return  # before its images are decoded, as nobody waits for the answer any more
        images = decode_images(request.packet.payload, asked.shape, asked.encoding)
        for held in chosen:
            start = time.perf_counter()
            try:
                feature = held.engine.run_in_chunks(images, until=until)
            except DeadlineError:
                line.outcome = "late"
                return
            seconds = time.perf_counter() - start
            reply = InferReply(
                shape=feature.shape,
                request=asked.request,
                submodel=held.spec.id,
                device=self.name,
                seconds=seconds,
            )
            key = INFER.key(fleet=self._fleet, submodel=held.spec.id, device=self.name)
            line.submodels.append(held.spec.id)
            yield Reply(key, encode(reply, to_payload(feature)))

    # --- loading ---------------------------------------------------------------------------------------

    def _check_gateway(self, asked: LoadRequest) -> None:
        """Check that no gateway takes the device from another one, which is still there, for another bundle."""
        last = self._told_by
        if last is not None and last.bundle != asked.bundle and last.gateway in self._gateways - {asked.gateway}:
            raise FleetTakenError(
                f"device {self.name} serves the gateway on {last.gateway_host}, with another bundle, "
                f"{last.bundle[:12]}: stop that gateway, or build this bundle for a fleet of another name"
            )

    def _check_memory(self, asked: LoadRequest) -> None:
        """Check the limits before anything is dropped or fetched, so that a refusal leaves the device as it was."""
        limits = [limit for limit in (self._memory_limit_bytes, asked.memory_limit_bytes) if limit is not None]
        needed = sum(spec.memory_bytes for spec in asked.submodels)
        with self._lock:
            kept = sum(held.spec.memory_bytes for (bundle, _), held in self._held.items() if _stays(bundle, asked))
        if limits and needed + kept > min(limits):
            beside = f" beside the {kept / 1e6:,.1f} MB of the other bundle" if kept else ""
            raise MemoryLimitError(
                f"the planned sub-models need {needed / 1e6:,.1f} MB{beside}, the limit is "
                f"{min(limits) / 1e6:,.1f} MB; raise the limit, or plan again"
            )

    def _say_once(self, trouble: str) -> None:
        """Say a problem when it is new: the gateway tries again every few seconds, and the same problem comes again."""
        if trouble != self._trouble:
            self._say(f"cannot load what the gateway plans: {trouble}")
        self._trouble = trouble

    def _load(self, asked: LoadRequest, until: float) -> None:
        with self._lock:
            wanted = {spec.id: spec for spec in asked.submodels}
            # What is not wanted is dropped before anything is loaded, so that both are never in memory together.
            self._held = {
                (bundle, i): held
                for (bundle, i), held in self._held.items()
                if _stays(bundle, asked) or (bundle == asked.bundle and wanted.get(i) == held.spec)
            }
            self._serve_inference(bool(self._held))
            lacking = [spec for i, spec in wanted.items() if (asked.bundle, i) not in self._held]
        self._cache.expect(spec.sha256 for spec in asked.submodels)
        for spec in lacking:
            if time.monotonic() > until:
                raise DeadlineError("the deadline for loading has passed")
            start = time.perf_counter()
            fetch = partial(fetch_part, self._transport, self._fleet, spec.sha256)
            file = self._cache.get(spec.sha256, spec.bytes, fetch)
            engine = SubModelEngine(
                file.path,
                channels=spec.channels,
                image_size=spec.image_size,
                feature_dim=spec.feature_dim,
                threads=self._threads,
            )
            with self._lock:
                self._held[asked.bundle, spec.id] = Held(spec, engine, file)
                self._serve_inference(True)
            took = time.perf_counter() - start
            self._say(f"sub-model {spec.id}: {spec.bytes / 1e6:.1f} MB, ready after {took:.2f} s")

    def _serve_inference(self, wanted: bool) -> None:
        """Serve inference while a sub-model is held, so that no input is sent to a device without one."""
        if wanted and self._inferring is None and not self._closed:
            key = INFER.key(fleet=self._fleet, submodel=ANY, device=self.name)
            self._inferring = self._transport.serve(key, self._on_infer)
        elif not wanted and self._inferring is not None:
            self._inferring.close()
            self._inferring = None


def _stays(bundle: str, asked: LoadRequest) -> bool:
    """Whether sub-models of this bundle stay as they are beside those that are asked for."""
    return bundle != asked.bundle and bundle in asked.beside
