"""An exchange, carried out between real processes over real sockets with the product's transport, and measured."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.compare.exchange import Exchange
from benchmarks.compare.namespaces import Network
from benchmarks.compare.replay_node import Report, Settings
from edvit.errors import ConfigError, UnavailableError
from edvit.runtime.local import last_line, log_of

Compute = Literal["replayed", "real"]
"""`real`: every work's ONNX file is run, and the scores are those of the model. `replayed`: a sleep of the seconds that
it took alone, since N devices cannot compute side by side on fewer cores than N; payloads are random bytes."""

PORT = 7447
END_S = 2.0
"""How long processes may take to end by themselves; then they are killed."""


@dataclass(frozen=True)
class Replay:
    """What was measured."""

    compute: Compute
    where: Literal["namespaces", "loopback"]
    images: int
    """In each of the two measurements, after warm-up."""
    latency_s: float
    """One image at a time, from the image at the gateway to the end of the gateway's last step: median, seconds."""
    latency_p10_s: float
    latency_p90_s: float
    images_per_s: float
    """With `in_flight` images under way all the time: what fills the nodes and what empties them is not counted."""
    in_flight: int
    wire_bytes: float
    """Payload bytes an image that nodes received from one another, counted where they arrived."""
    frame_bytes: float | None
    """Bytes an image that the interfaces of all namespaces sent: with every header, acknowledgement, and the start of
    the connections; None on loopback."""
    answer: bytes
    """What the gateway's last step gave for the last image (float32 scores); empty unless compute is real."""


def replay(
    exchange: Exchange,
    *,
    network: Network | None = None,
    compute: Compute = "replayed",
    image: bytes = b"",
    images: int = 30,
    warm_up: int = 3,
    in_flight: int | None = None,
    deadline_s: float = 60.0,
) -> Replay:
    """Carry out an exchange for some images one at a time, then for as many with several under way.

    Args:
        network: where each node runs; by default all are on loopback, with nothing shaped.
        image: what the gateway sends first; random bytes by default.
        images: in each of the two measurements, at least 2.
        in_flight: images under way in the second one; by default enough that every node and link has one or two.
        deadline_s: for one image, and for all processes to start, seconds.

    Raises:
        ConfigError: a setting makes no sense, or `real` is asked for where a work has no model.
        ServiceError: a process failed, or an image did not come through in time.
    """
    window = 2 * (exchange.devices + 1) if in_flight is None else in_flight
    if images < 2 or warm_up < 0 or window < 1:
        raise ConfigError("a replay needs at least 2 images, 1 in flight, and no less than 0 to warm up")
    _check(exchange, network, compute)
    programs = exchange.programs()
    endpoints = _endpoints(len(programs), network)
    size = programs[0][0].sends[0].bytes
    image = image or np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    settings = [
        Settings(
            node=node,
            program=program,
            endpoints=endpoints,
            real=compute == "real",
            image=b"" if node else image,
            warm_up=warm_up,
            images=images,
            in_flight=window,
            deadline_s=deadline_s,
        )
        for node, program in enumerate(programs)
    ]
    before = _sent(network, len(programs))
    reports = _run(settings, network)
    total = settings[0].total
    after = _sent(network, len(programs))
    latencies = reports[0].latencies_s
    deciles = statistics.quantiles(latencies, n=10, method="inclusive")
    return Replay(
        compute=compute,
        where="loopback" if network is None else "namespaces",
        images=images,
        latency_s=statistics.median(latencies),
        latency_p10_s=deciles[0],
        latency_p90_s=deciles[-1],
        images_per_s=reports[0].images_per_s,
        in_flight=window,
        wire_bytes=sum(report.received_bytes for report in reports) / total,
        frame_bytes=None if before is None or after is None else (after - before) / total,
        answer=base64.b64decode(reports[0].answer),
    )


def _check(exchange: Exchange, network: Network | None, compute: Compute) -> None:
    if network is not None and len(network.nodes) <= exchange.devices:
        there = len(network.nodes) - 1
        raise ConfigError(f"{exchange.devices} devices need as many namespaces, the network has {there}")
    work = [step.work for program in exchange.programs() for step in program]
    if compute == "real" and any(part.seconds > 0 and part.model is None for part in work):
        raise ConfigError("work that shall really be run needs an ONNX file; this exchange knows only its seconds")


def _endpoints(count: int, network: Network | None) -> tuple[str, ...]:
    if network is not None:
        return tuple(f"tcp/{node.address}:{PORT}" for node in network.nodes[:count])
    # An address of its own for every replay, so that no other process can have the ports: all of 127/8 is loopback.
    draw = random.SystemRandom()
    host = f"127.{draw.randrange(1, 255)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"
    first = draw.randrange(20_000, 32_768 - count)  # below what Linux gives to outgoing connections
    return tuple(f"tcp/{host}:{first + i}" for i in range(count))


def _sent(network: Network | None, count: int) -> int | None:
    return None if network is None else sum(network.sent_bytes(node) for node in range(count))


# --- processes ---------------------------------------------------------------------------------------------


def _run(settings: list[Settings], network: Network | None) -> list[Report]:
    """The reports of all nodes, which end before this returns."""
    lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    reports: dict[int, Report] = {}
    with tempfile.TemporaryDirectory(prefix="edvit-") as folder, _processes(settings, network, Path(folder)) as started:
        for node, process in enumerate(started):
            threading.Thread(target=_listen, args=(node, process, lines), daemon=True).start()
        while len(reports) < len(settings):
            node, line = lines.get()
            if not line:
                raise UnavailableError(f"{_called(node)} ended: {last_line(Path(folder), str(node))}")
            reports[node] = Report(**json.loads(line))
    return [reports[node] for node in range(len(settings))]


def _listen(node: int, process: subprocess.Popen[str], lines: queue.SimpleQueue[tuple[int, str]]) -> None:
    """One line, or an empty one where the process ends without."""
    if process.stdout is not None:
        with process.stdout as stream:
            lines.put((node, stream.readline()))


@contextlib.contextmanager
def _processes(
    settings: list[Settings], network: Network | None, folder: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-m", "benchmarks.compare.replay_node"]
    try:
        for one in settings:
            with log_of(folder, str(one.node)).open("wb") as log:
                # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
                options: dict[str, Any] = {
                    "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True,
                    "start_new_session": True,
                }  # fmt: skip
                process = (
                    subprocess.Popen(command, **options)
                    if network is None
                    else network.start(one.node, command, **options)
                )
            started.append(process)
            _tell(process, one.to_json())
        yield started
    finally:
        _end(started)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    """A process that has ended already is noticed where its report is awaited."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line + "\n")
            process.stdin.flush()


def _end(started: list[subprocess.Popen[str]]) -> None:
    """Let go of all tethers, wait for all, kill what is left."""
    for process in started:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    until = time.monotonic() + END_S
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()


def _called(node: int) -> str:
    return f"device {node}" if node else "the gateway"
