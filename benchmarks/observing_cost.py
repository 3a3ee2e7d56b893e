"""What metrics add to a request: one gateway that observes some requests and not others, compared request by request.

    python -m benchmarks.observing_cost [--rounds 1000] [--seed 0]

Each round asks three times, in an order that is drawn anew: twice with nothing observed, and once with metrics. The
first two are alike, and their difference is what the method itself is wrong by. It is one gateway because two of them,
though alike, differ by more than metrics add. Apart from that, the processor time of the calls alone is measured.
The bundle has two sub-models at 224 pixels whose graphs do next to nothing (needs the onnx package); the devices are
processes of their own, and a request is a raw uint8 array.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.gateway_overhead import WARM_UP, make_bundle
from edvit.bundle import Bundle
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.observer import Observed
from edvit.runtime.http.app import create_app
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.http.request_log import RequestLog
from edvit.runtime.http.server import HttpServer, bind
from edvit.runtime.http.uploads import Uploads
from edvit.runtime.local import READY_S, device_processes, free_port
from edvit.runtime.request import current
from edvit.runtime.watching.measured import Measured
from edvit.runtime.watching.metrics import Metrics
from edvit.runtime.wire.zenoh_transport import ZenohTransport

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ARMS = ("without", "again", "metrics")
"""Ids of the requests; those of the last are observed."""
DRAWS = 2000
"""Draws of the bootstrap."""
CALLS = 20_000


def is_observed() -> bool:
    request = current()
    return request is not None and request.id == ARMS[-1]


class Some:
    """Hands on what is to be observed, and keeps the last of it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.last = Observed()

    def observe(self, observed: Observed) -> None:
        self.last = observed
        if is_observed():
            self._metrics.observe(observed)


class InTurn:
    """The API, observed or not."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._plain = app
        self._measured = Measured(app, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._measured if is_observed() else self._plain)(scope, receive, send)


@contextlib.contextmanager
def serving(bundle: Bundle, folder: Path, metrics: Metrics, some: Some) -> Iterator[str]:
    """HOST:PORT of a gateway in this process; its devices are processes."""
    plan = bundle.manifest.plan
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    names = [device.name for device in plan.fleet.devices]
    with (
        device_processes(names, plan.fleet.name, endpoint, folder),
        contextlib.closing(ZenohTransport(listen=[endpoint], scouting=False)) as transport,
        contextlib.closing(Gateway(bundle, transport, deadline_s=60.0, observers=[some])) as gateway,
        contextlib.closing(Uploads(bundle.manifest.preprocessing)) as uploads,
        HttpServer(
            RequestLog(InTurn(create_app(gateway, bundle.manifest, uploads), metrics)), bind("127.0.0.1", 0)
        ) as server,
    ):
        gateway.wait_ready(READY_S)
        yield server.url.removeprefix("http://")


def ask(connection: http.client.HTTPConnection, body: bytes, arm: str) -> float:
    """Milliseconds of one request."""
    start = time.perf_counter()
    connection.request("POST", "/predict", body, {"content-type": NPY, "x-request-id": arm})
    answer = connection.getresponse()
    said = answer.read()
    milliseconds = (time.perf_counter() - start) * 1000
    if answer.status != 200:
        raise SystemExit(f"no answer, so the figures would mean nothing: {said.decode()}")
    return milliseconds


def measure(address: str, body: bytes, rounds: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Milliseconds `[rounds, arms]`."""
    connection = http.client.HTTPConnection(address)
    found = np.empty((WARM_UP + rounds, len(ARMS)))
    for row in found:
        for i in rng.permutation(len(ARMS)):
            row[i] = ask(connection, body, ARMS[i])
    connection.close()
    return found[WARM_UP:]


def interval(differences: npt.NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """95 % of the bootstrap's medians of `[rounds]` differences."""
    medians = [np.median(rng.choice(differences, len(differences))) for _ in range(DRAWS)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def processor_us(metrics: Metrics, observed: Observed) -> float:
    """Microseconds of this thread's processor time that counting one request takes."""
    start = time.thread_time()
    for _ in range(CALLS):
        metrics.observe(observed)
        metrics.answered(
            route="/predict", status=200, seconds=0.002, received=150_000, sent=300, code=None, stages={"decode": 0.001}
        )
    return (time.thread_time() - start) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    metrics = Metrics()
    some = Some(metrics)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder)
        body = to_npy(rng.integers(0, 256, bundle.manifest.preprocessing.shape, dtype=np.uint8))
        with serving(bundle, folder, metrics, some) as address:
            found = measure(address, body, arguments.rounds, rng)
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, {arguments.rounds} rounds, "
        f"seed {arguments.seed}"
    )
    for arm, column in zip(ARMS, found.T, strict=True):
        low, middle, high = np.percentile(column, [10, 50, 90])
        print(f"  {arm:8} median {middle:.3f} ms, p10 {low:.3f}, p90 {high:.3f}")
    for i in (1, 2):
        differences = found[:, i] - found[:, 0]
        low, high = interval(differences, rng)
        print(f"  {ARMS[i]:8} adds {np.median(differences):+.4f} ms (95 %: {low:+.4f} to {high:+.4f})")
    print(f"  the calls alone: {processor_us(metrics, some.last):.1f} us of processor time")


if __name__ == "__main__":
    main()
