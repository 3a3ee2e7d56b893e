"""A whole fleet on this machine: each device of the plan is a process, and the gateway is in the calling process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edvit.bundle import Bundle
from edvit.errors import UnavailableError
from edvit.runtime.http.server import bind
from edvit.runtime.rejection import NEVER, Rejection
from edvit.runtime.service import Protection, Service, serve_on
from edvit.runtime.watching.watching import NO_METRICS, MetricsAt
from edvit.runtime.wire.image_encoding import ImageEncoding

READY_S = 60.0
PATIENCE_S = 3.0
"""Seconds for which a device may have a problem at the start, while the gateway tries again."""

END_S = 0.8
"""Seconds that devices get to end by themselves before they are killed."""


@dataclass(frozen=True)
class LocalService(Service):
    """A running gateway with its devices.

    Attributes:
        devices: the processes, by device name.
    """

    devices: dict[str, subprocess.Popen[bytes]]


@contextlib.contextmanager
def serve_locally(
    bundle: Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    deadline_s: float | None = None,
    image_encoding: ImageEncoding = "raw",
    strict: bool = False,
    replicas: int = 1,
    rejection: Rejection = NEVER,
    ready_s: float = READY_S,
    protection: Protection | None = None,
    metrics: MetricsAt = NO_METRICS,
) -> Iterator[LocalService]:
    """Serve a bundle from this machine alone until the block ends; every sub-model is ready when it begins.

    The devices end with the block, and with this process, however it ends.

    Args:
        bundle: a verified bundle.
        host, port: the HTTP address; port 0 takes a free one.
        deadline_s, image_encoding, strict, replicas: as for `Gateway`.
        rejection: which images are taken for none of the classes.
        ready_s: how long the devices may take to load their sub-models, seconds.
        protection: as for `serve`; its `wire` is None, as the devices are reached over the loopback interface alone.
        metrics: where metrics are shown.

    Raises:
        PortInUseError: the HTTP address is taken; no device was started.
        UnavailableError: a device did not become ready; the message has the last thing it said.
    """
    plan = bundle.manifest.plan
    names = [device.name for device in plan.fleet.devices if any(line.device == device.name for line in plan.placed)]
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    with (
        bind(host, port) as bound,
        tempfile.TemporaryDirectory(prefix="edvit-") as folder,
        device_processes(names, plan.fleet.name, endpoint, Path(folder)) as devices,
        serve_on(
            bound,
            bundle,
            listen=endpoint,
            deadline_s=deadline_s,
            image_encoding=image_encoding,
            strict=strict,
            replicas=replicas,
            rejection=rejection,
            scouting=False,
            protection=protection,
            metrics=metrics,
        ) as service,
    ):
        _wait_ready(service, devices, Path(folder), ready_s)
        yield LocalService(service.url, service.switch, service.metrics_url, devices)


@contextlib.contextmanager
def device_processes(
    names: list[str], fleet: str, endpoint: str, folder: Path
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Device agents that connect to `endpoint`, with what they print in `folder/NAME.log`; ended with the block."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            processes[name] = _start_device(name, fleet, endpoint, folder)
        yield processes
    finally:
        _end(list(processes.values()))


def _start_device(name: str, fleet: str, endpoint: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edvit.cli.tether", "device"]
    command += ["--name", name, "--fleet", fleet, "--connect", endpoint, "--cache", str(folder / "cache")]
    command += ["--threads", "1"]  # the devices share this machine's cores
    with log_of(folder, name).open("wb") as log:
        # Its own session: Ctrl-C in the terminal reaches the gateway alone, which ends its devices in order.
        # Its standard input is the tether: the pipe closes when this process ends, and the device with it.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)


def _wait_ready(service: Service, devices: dict[str, subprocess.Popen[bytes]], folder: Path, ready_s: float) -> None:
    """Wait until every sub-model is ready. Raises UnavailableError as soon as it is clear that one will not be."""
    start = time.monotonic()
    healthy = dict.fromkeys(devices, start)
    while not service.gateway.is_ready():
        now = time.monotonic()
        for name, process in devices.items():
            if process.poll() is not None:
                said = last_line(folder, name)
                raise UnavailableError(f"device {name} ended with exit code {process.returncode}: {said}")
        for device in service.gateway.devices():
            if device.problem is None:
                healthy[device.name] = now
            elif now - healthy.get(device.name, now) > PATIENCE_S:
                raise UnavailableError(f"device {device.name}: {device.problem}")
        if now - start > ready_s:
            service.gateway.wait_ready(0)  # raises, naming what is missing
        time.sleep(0.02)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask every process to end, wait for all, and kill those that are left with the processes they have started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + END_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def log_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def last_line(folder: Path, name: str) -> str:
    """The last line a process printed."""
    lines = log_of(folder, name).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def free_port() -> int:
    """Find a TCP port of the loopback interface that is free now and likely to stay free.

    It lies below the range from which Linux gives outgoing connections theirs: one of them could take it before it
    is listened on.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UnavailableError("no free port on the loopback interface")
