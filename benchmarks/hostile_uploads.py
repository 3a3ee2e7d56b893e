"""Hostile uploads against a gateway: its memory, and what another client's requests take meanwhile.

    python -m benchmarks.hostile_uploads [--seconds 20] [--rate 10] [--rounds 1]

Runs `edvit serve --local` over a made bundle with two sub-models (needs the onnx package). A polite client, at an
address of its own (127.0.0.2), sends a JPEG of 160 x 120 pixels so many times a second: alone, then while another
address sends a mixture of everything at once: images that take gigabytes or minutes, damaged arrays, bodies of 19.9 MB,
half bodies and idle connections. Memory is that of the gateway with the processes that decode for it; what processes
share is counted once (PSS).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hostile_files
from edvit.runtime.http.body import NPY
from serving import Served, serving
from tiny_bundle import write_tiny_bundle

FILE = "application/octet-stream"
SETTLE_S = 5.0
"""Seconds after the mixture's end, after which the memory is looked at again."""


@dataclass
class Seen:
    """What a client or a kind of upload was answered.

    Attributes:
        statuses: how often each status was.
        seconds: what each answer took.
    """

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)

    def percentiles(self) -> str:
        if not self.seconds:
            return "no answer"
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(self.seconds) * 1000:.0f} ms"


def jpeg() -> bytes:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((160, 120))
    buffer = io.BytesIO()
    coarse.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def uploads() -> dict[str, tuple[bytes, str, int]]:
    """Name -> body, media type, how many send it at a time."""
    shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8), }"
    return {
        "PNG, 7000 x 7000, 16-bit grey": (hostile_files.grey_16_bits(7000, 7000), FILE, 4),
        "JPEG with 2,000 scans": (hostile_files.scans(2000), FILE, 4),
        "PPM, 19 MB of comment": (hostile_files.long_comment(19_000_000), FILE, 4),
        "PPM, 0.4 MB of comment": (hostile_files.long_comment(400_000), FILE, 4),
        "PPM, 19 MB of decimal numbers": (hostile_files.plain_ppm(2_200_000), FILE, 4),
        "noise of 19.9 MB": (bytes(19_900_000), FILE, 16),
        "array of shape (True, 8, 8)": (hostile_files.npy_header(shape), NPY, 2),
        "array with 9,000 brackets": (hostile_files.npy_header(b"(" * 9000), NPY, 2),
    }


def ask(url: str, body: bytes, over: threading.Event, seen: Seen, rate: float) -> None:
    """Send a JPEG `rate` times a second, from 127.0.0.2, until it is over."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=url, transport=transport, timeout=60) as client:
        due = time.perf_counter()
        while not over.wait(max(0.0, due - time.perf_counter())):
            start = time.perf_counter()
            response = client.post("/predict", content=body, headers={"content-type": "image/jpeg"})
            seen.seconds.append(time.perf_counter() - start)
            seen.statuses[response.status_code] += 1
            due = max(due + 1 / rate, time.perf_counter())


def attack(url: str, body: bytes, media_type: str, over: threading.Event, seen: Seen) -> None:
    """Send a hostile body again and again until it is over; a refusal for overload is waited for as it asks."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not over.is_set():
            with contextlib.suppress(httpx.HTTPError):
                response = client.post("/predict", content=body, headers={"content-type": media_type})
                seen.statuses[response.status_code] += 1
                over.wait(float(response.headers.get("retry-after", 0)))


def connect(url: str, text: bytes) -> socket.socket:
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port or 80), timeout=10)
    connection.sendall(text)
    return connection


def hold_connections(url: str, over: threading.Event) -> None:
    """64 half bodies and 260 idle connections, opened again every few seconds, until it is over."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\nhalf"
    while not over.is_set():
        with contextlib.ExitStack() as stack:
            for i in range(64):
                with contextlib.suppress(OSError):
                    stack.enter_context(connect(url, head % (1_000, 400_000, 19_000_000)[i % 3]))
            for _ in range(260):
                with contextlib.suppress(OSError):
                    stack.enter_context(connect(url, b""))
            over.wait(5)


@contextlib.contextmanager
def running(*calls: Callable[[threading.Event], Any]) -> Iterator[None]:
    """Each call in a thread, with an event that tells when it is over; all have ended when the block has."""
    over = threading.Event()
    threads = [threading.Thread(target=call, args=(over,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def attack_with_everything(url: str, begun: Any, over: Any, answers: Any) -> None:
    """Run the mixture until it is over, then put the statuses of each kind of upload into a queue.

    In a process of its own, of low priority: hostile clients have machines of their own, and this one's cores are the
    gateway's.
    """
    os.nice(19)
    kinds = uploads()
    seen = {name: Seen() for name in kinds}
    hostile = [
        lambda over, data=data, kind=kind, of_kind=seen[name]: attack(url, data, kind, over, of_kind)
        for name, (data, kind, times) in kinds.items()
        for _ in range(times)
    ]
    with running(*hostile, lambda over: hold_connections(url, over)):
        begun.set()
        over.wait()
    answers.put({name: dict(sorted(of_kind.statuses.items())) for name, of_kind in seen.items()})


def look(served: Served, most: list[int], over: threading.Event) -> None:
    while not over.wait(0.05):
        most.append(served.memory_bytes())


def measure(seconds: float, rate: float) -> None:
    """One gateway: idle, under the mixture, and after it."""
    body = jpeg()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle", submodels=2, classes=4, size=224)
        with serving(bundle.path, "--local", "--deadline-s", "10") as served:
            warm, idle, busy = Seen(), Seen(), Seen()
            for seen, its_seconds in ((warm, 2.0), (idle, seconds)):
                with running(partial(ask, served.url, body, seen=seen, rate=rate)):
                    time.sleep(its_seconds)
            before, most = served.memory_bytes(), [0]
            context = multiprocessing.get_context("spawn")
            answers, begun, over = context.SimpleQueue(), context.Event(), context.Event()
            attackers = context.Process(target=attack_with_everything, args=(served.url, begun, over, answers))
            attackers.start()
            begun.wait()
            with running(lambda over: ask(served.url, body, over, busy, rate), lambda over: look(served, most, over)):
                time.sleep(seconds)
            over.set()
            statuses = answers.get()
            attackers.join()
            time.sleep(SETTLE_S)
            after = served.memory_bytes()
    print(f"polite client alone:        {idle.percentiles()}; {dict(idle.statuses)}")
    print(f"polite client meanwhile:    {busy.percentiles()}; {dict(busy.statuses)}")
    ratio = np.percentile(busy.seconds, 99) / np.percentile(idle.seconds, 99)
    print(f"p99 meanwhile / alone:      {ratio:.2f}")
    print(
        f"memory with its decoders:   {before / 1e6:.0f} MB before, {max(most) / 1e6:.0f} MB at most, "
        f"{after / 1e6:.0f} MB {SETTLE_S:g} s after"
    )
    for name, of_kind in statuses.items():
        print(f"  {name:32} {of_kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="alone, and under the mixture")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second of the polite client")
    parser.add_argument("--rounds", type=int, default=1, help="gateways, one after the other")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for _ in range(arguments.rounds):
        measure(arguments.seconds, arguments.rate)


if __name__ == "__main__":
    main()
