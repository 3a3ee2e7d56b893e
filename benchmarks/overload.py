"""A gateway that is asked ten times as much as it can answer: what it still answers, and what that costs.

    python -m benchmarks.overload [--seconds 300] [--times 10] [--addresses 4] [--ballast-mb 250]

Runs `edvit serve` and two `edvit device` on loopback over a made bundle (needs the onnx package) whose sub-models read
`--ballast-mb` of weights for each image. The capacity is measured first: answers a second to two clients at each
address, which ask again as soon as they are answered. Then the same addresses (127.0.0.2 ...) ask `--times` as
often as that, whatever they are answered, and a polite client at an address of its own (127.0.0.100) asks twice a
second. Goodput is what is answered with every feature; an answer is compared with the same bundle in one
process: all of the polite client, every tenth of the others. Those who ask share this machine's cores with the gateway
and the devices: the processor time of each is printed, and the capacity is measured without most of theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks.hostile_uploads import running
from edvit.runtime.http.answers import Predicted
from edvit.runtime.http.body import NPY, to_npy
from fleet_in_memory import some_images
from reference import Reference
from served_fleet import ServedFleet
from tiny_bundle import write_tiny_bundle

DEVICES = 2
CONNECTIONS = 240
"""Connections of all who ask too much, together: fewer than the gateway takes."""
TICK_S = 0.01
EACH = 2
"""Clients at each address while the capacity is measured."""
POLITE, POLITE_RATE = "127.0.0.100", 2.0
KEPT = 10
"""One in so many answers is kept, to be compared."""
WARM_S = 5.0
REST_S = 10.0


@dataclass
class Answers:
    """What came back.

    Attributes:
        sent: requests that were sent.
        unsent: requests that were not, as every connection still waited for an answer.
        statuses: how often each came, with the error's code.
        good: seconds since the start at which each answer with every feature came.
        seconds: how long each 200 took.
        degraded: answers with 200 that lack some feature.
        bodies: `(which image, body)` of those that were kept.
        lost: connections that ended before their answer.
        cpu_s: processor time of the process that asked.
    """

    sent: int = 0
    unsent: int = 0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    good: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    degraded: int = 0
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    lost: int = 0
    cpu_s: float = 0.0


class Asker(asyncio.Protocol):
    """One connection that asks; no library between it and the socket, so that it takes little of the machine."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._which: int | None = None
        self._since = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, which: int, request: bytes) -> None:
        assert self._transport is not None
        self._which, self._since, self._buffer = which, time.monotonic(), b""
        self._transport.write(request)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        size = re.search(rb"\ncontent-length: (\d+)", head, re.IGNORECASE) if end else None
        if size is None or len(body) < int(size[1]) or self._which is None:
            return
        which, self._which = self._which, None
        self._load.answered(self, which, int(head[9:12]), body, time.monotonic() - self._since)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.ended(self, in_midst=self._which is not None)


class Load:
    """Asks from several addresses, over connections that are used again and again.

    Args:
        rate: requests a second in an open loop; None for a closed loop, in which every connection asks again at once.
        kept: one in so many bodies is kept.
    """

    def __init__(
        self, port: int, requests: list[bytes], addresses: list[str], *, rate: float | None, each: int, kept: int
    ) -> None:
        self.answers = Answers()
        self._port, self._requests, self._addresses = port, requests, addresses
        self._rate, self._each, self._kept = rate, each, kept
        self._free: dict[str, collections.deque[Asker]] = {one: collections.deque() for one in addresses}
        self._address: dict[Asker, str] = {}
        self._opening: collections.Counter[str] = collections.Counter()
        self._open: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = 0
        self._start = time.monotonic()
        self._over = False

    async def run(self, over: Any) -> None:
        """Ask until `over` is set and every answer is there, or was waited for half a minute."""
        self._start = start = time.monotonic()
        cpu_s = time.process_time()
        due = 0
        if self._rate is None:
            for address in self._addresses:
                for _ in range(self._each):
                    self._ask(address)
        while not over.is_set():
            await asyncio.sleep(TICK_S)
            while self._rate is not None and due < (time.monotonic() - start) * self._rate:
                self._ask(self._addresses[due % len(self._addresses)])
                due += 1
        self._over = True
        for _ in range(300):
            if sum(self._open.values()) == sum(map(len, self._free.values())):
                break
            await asyncio.sleep(0.1)
        for asker in [*self._address]:
            asker.close()
        await asyncio.sleep(0)  # closes the sockets
        self.answers.cpu_s = time.process_time() - cpu_s

    def _ask(self, address: str) -> None:
        if self._free[address]:
            self._send(self._free[address].pop())
        elif self._open[address] + self._opening[address] < self._each:
            self._opening[address] += 1
            task = asyncio.get_running_loop().create_task(self._connect(address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.answers.unsent += 1

    async def _connect(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, asker = await loop.create_connection(
                partial(Asker, self), "127.0.0.1", self._port, local_addr=(address, 0)
            )
        except OSError:
            self.answers.lost += 1
            return
        finally:
            self._opening[address] -= 1
        self._open[address] += 1
        self._address[asker] = address
        self._send(asker)

    def _send(self, asker: Asker) -> None:
        which = self._next % len(self._requests)
        self._next += 1
        self.answers.sent += 1
        asker.ask(which, self._requests[which])

    def answered(self, asker: Asker, which: int, status: int, body: bytes, seconds: float) -> None:
        answers = self.answers
        if status == 200:
            answers.statuses["200"] += 1
            answers.seconds.append(seconds)
            if b'"degraded":true' in body:
                answers.degraded += 1
            else:
                answers.good.append(time.monotonic() - self._start)
            if len(answers.seconds) % self._kept == 0:
                answers.bodies.append((which, body))
        else:
            found = re.search(rb'"code":"([a-z-]+)"', body)
            answers.statuses[f"{status} {found[1].decode() if found else ''}"] += 1
        if self._rate is None and not self._over:
            self._send(asker)
        else:
            self._free[self._address[asker]].append(asker)

    def ended(self, asker: Asker, *, in_midst: bool) -> None:
        address = self._address.pop(asker, None)
        if address is None:
            return
        self._open[address] -= 1
        self.answers.lost += in_midst
        with contextlib.suppress(ValueError):
            self._free[address].remove(asker)


def ask_in_a_process(make: partial[Load], over: Any, answers: Any) -> None:
    load = make()
    asyncio.run(load.run(over))
    answers.put(load.answers)


def ask_for(make: partial[Load], seconds: float) -> Answers:
    """What comes back within so many seconds to a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers, over = context.SimpleQueue(), context.Event()
    process = context.Process(target=ask_in_a_process, args=(make, over, answers))
    process.start()
    time.sleep(seconds)
    over.set()
    found: Answers = answers.get()
    process.join()
    return found


def request_of(image: Any) -> bytes:
    body = to_npy(image)
    return b"POST /predict HTTP/1.1\r\nhost: gateway\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (
        NPY.encode(),
        len(body),
        body,
    )


def cpu_s(fleet: ServedFleet) -> dict[str, float]:
    """Processor time that the gateway, with what decodes for it, and the devices have taken."""
    gateway = psutil.Process(fleet.gateway.pid)
    found = {"gateway": [gateway, *gateway.children(recursive=True)]}
    found["devices"] = [psutil.Process(device.pid) for device in fleet.devices.values()]
    return {name: sum(sum(one.cpu_times()[:2]) for one in processes) for name, processes in found.items()}


def cores(fleet: ServedFleet, before: dict[str, float], answers: Answers, seconds: float) -> str:
    """How much processor time each has taken since `before`, in cores."""
    taken = {name: now - before[name] for name, now in cpu_s(fleet).items()} | {"those who ask": answers.cpu_s}
    return "cores: " + ", ".join(f"{name} {its_s / seconds:.2f}" for name, its_s in taken.items())


@dataclass(frozen=True)
class Figures:
    """What one run gave.

    Attributes:
        capacity: answers a second, closed loop.
        goodput: answers with every feature a second, under overload.
        polite_share: of the polite client's requests, those that were answered with 200.
        growth_bytes: memory of the gateway after the overload, less that before it, both when it rests.
        wrong: problems of the answers that were compared, one line each.
    """

    capacity: float
    goodput: float
    polite_share: float
    growth_bytes: int
    wrong: list[str]


def measure(fleet: ServedFleet, *, seconds: float, times: float, addresses: int, capacity_s: float) -> Figures:
    """The capacity of a whole fleet, then its goodput under `times` that many requests."""
    images = some_images(fleet.bundle, batch=16)
    reference = Reference(fleet.bundle, images)
    port = int(fleet.url.rpartition(":")[2])
    requests = [request_of(image) for image in images]
    names = [f"127.0.0.{i + 2}" for i in range(addresses)]
    make = partial(Load, port, requests, names)
    start, used = time.monotonic(), cpu_s(fleet)
    closed = ask_for(partial(make, rate=None, each=EACH, kept=KEPT), WARM_S + capacity_s)
    within = [at for at in closed.good if WARM_S <= at < WARM_S + capacity_s]
    capacity = len(within) / capacity_s
    print(f"capacity: {capacity:.1f} answers/s to {EACH * addresses} clients; {told(closed)}")
    print(f"  {cores(fleet, used, closed, time.monotonic() - start)}", flush=True)
    time.sleep(2)
    before, most, used = fleet.use()[0], [0], cpu_s(fleet)
    polite = Load(port, requests, [POLITE], rate=POLITE_RATE, each=32, kept=1)
    start = time.monotonic()
    with running(lambda over: look(fleet, most, over), lambda over: asyncio.run(polite.run(over))):
        flood = ask_for(partial(make, rate=times * capacity, each=CONNECTIONS // addresses, kept=KEPT), seconds)
    took = time.monotonic() - start
    shares = cores(fleet, used, flood, took)
    time.sleep(REST_S)
    after = fleet.use()[0]
    good = [at for at in flood.good if WARM_S <= at < seconds]
    goodput = len(good) / (seconds - WARM_S) + len(polite.answers.good) / took
    share = len(polite.answers.seconds) / max(1, polite.answers.sent + polite.answers.unsent)
    asked = (flood.sent + flood.unsent) / seconds
    print(f"asked: {asked:.0f}/s for {seconds:g} s, {flood.unsent} of {flood.sent + flood.unsent} could not be sent")
    print(f"goodput: {goodput:.1f} answers/s, {100 * goodput / capacity:.0f} % of capacity; {told(flood)}")
    print(f"polite client: {100 * share:.1f} % served; {told(polite.answers)}")
    print(
        f"memory: {before / 1e6:.1f} MB before, {max(most) / 1e6:.1f} MB at most, "
        f"{after / 1e6:.1f} MB {REST_S:g} s after"
    )
    print(f"  {shares}")
    problems = (
        reference.problem(which, Predicted.model_validate_json(body))
        for answers in (closed, flood, polite.answers)
        for which, body in answers.bodies
    )
    return Figures(capacity, goodput, share, after - before, [problem for problem in problems if problem])


def told(answers: Answers) -> str:
    p50, p99 = np.percentile(answers.seconds or [float("nan")], [50, 99]) * 1000
    times = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    return f"{dict(answers.statuses)}, {answers.degraded} degraded, {answers.lost} lost, {times}"


def look(fleet: ServedFleet, most: list[int], over: threading.Event) -> None:
    while not over.wait(1.0):
        most.append(fleet.use()[0])


@contextlib.contextmanager
def a_fleet(folder: Path, ballast_mb: float) -> Any:
    with contextlib.ExitStack() as stack:
        ballast = int(ballast_mb * 1e6)
        bundle = write_tiny_bundle(
            folder / "bundle", submodels=DEVICES, classes=2 * DEVICES, size=32, ballast_bytes=ballast
        )
        fleet = ServedFleet(stack, bundle, folder)
        fleet.start_gateway()
        fleet.start_devices()
        fleet.wait_whole()
        yield fleet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of overload")
    parser.add_argument("--times", type=float, default=10.0, help="requests a second, as a multiple of the capacity")
    parser.add_argument("--addresses", type=int, default=4, help="from which too much is asked")
    parser.add_argument("--ballast-mb", type=float, default=250.0, help="weights of a sub-model: more is slower")
    parser.add_argument("--capacity-s", type=float, default=20.0, help="seconds for which the capacity is measured")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}, {json.dumps(vars(options))}")
    with tempfile.TemporaryDirectory() as folder, a_fleet(Path(folder), options.ballast_mb) as fleet:
        figures = measure(
            fleet,
            seconds=options.seconds,
            times=options.times,
            addresses=options.addresses,
            capacity_s=options.capacity_s,
        )
    for problem in figures.wrong[:10]:
        print(f"wrong: {problem}")
    sys.exit(1 if figures.wrong else 0)


if __name__ == "__main__":
    main()
