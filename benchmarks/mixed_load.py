"""A mixed load with faults, for as long as wanted, every answer compared with the same bundle in one process.

    python -m benchmarks.mixed_load [--minutes 60] [--seed 0] [--out mixed_load.json]

Runs `edvit serve` and four `edvit device`, all on loopback, over a made bundle (needs the onnx package). Clients at
addresses of their own (127.0.0.2 ...) send arrays, files and batches. Meanwhile, drawn at random: devices are killed,
stopped and brought back, the gateway is killed or ended and started again, and for 15 seconds of each minute another
address sends the mixture of `benchmarks/hostile_uploads.py`. An answer is right, degraded (right without some feature,
and marked so) or wrong. A request is refused with a status (429, 503, 504); it is unreachable while the gateway is
being started again, and lost if it ends without an answer at any other time. Wrong and lost must be 0: else the exit
code is 1. What the gateway takes is looked at every ten seconds, its decoding processes included.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import os
import platform
import random
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

from benchmarks.hostile_uploads import FILE, attack_with_everything, running
from edvit.bundle import Bundle
from edvit.errors import EdvitError
from edvit.runtime.http.answers import ErrorAnswer, Predicted, PredictedBatch
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.source import to_array
from faults import RandomFaults
from fleet_in_memory import some_images
from reference import Reference
from served_fleet import ServedFleet
from tiny_bundle import write_tiny_bundle

DEVICES = 4
HOSTILE_S = 15.0
"""Seconds of hostile uploads in each minute."""
RESTARTS = 0.1
"""The share of faults that are a restart of the gateway."""
FAULT_PAUSE_S = 4.0
LOOK_S = 10.0


@dataclass
class Tally:
    """What came of all requests. Thread-safe for what it is used for: each line is written by one thread.

    Attributes:
        outcomes: how often, by client and outcome.
        seconds: what the answers took, by client.
        bad: what was wrong or lost, one line each.
        looks: seconds since the start, the gateway's memory (bytes), threads, handles.
        restarts: when the gateway was not to be reached, `time.monotonic()` from and to.
    """

    outcomes: dict[str, collections.Counter[str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    looks: list[tuple[float, int, int, int]] = field(default_factory=list)
    restarts: list[list[float]] = field(default_factory=list)

    def away(self, start: float, end: float) -> bool:
        """Whether the gateway was being started again at some time from `start` to `end`."""
        return any(gone <= end and start <= back for gone, back in self.restarts)


Send = Callable[[httpx.Client, random.Random], tuple[httpx.Response, list[str]]]
"""Sends a request; returns the answer, and what is wrong with it."""


def sends_image(body_kind: str, bodies: list[bytes], reference: Any) -> Send:
    """Single images, as arrays or files."""

    def send(client: httpx.Client, draw: random.Random) -> tuple[httpx.Response, list[str]]:
        which = draw.randrange(len(bodies))
        response = client.post("/predict", content=bodies[which], headers={"content-type": body_kind})
        if response.status_code != 200:
            return response, []
        problem = reference.problem(which, Predicted.model_validate_json(response.content))
        return response, [problem] if problem else []

    return send


def sends_batch(images: Any, reference: Any) -> Send:
    """Batches of 2 to 32 images."""

    def send(client: httpx.Client, draw: random.Random) -> tuple[httpx.Response, list[str]]:
        chosen = [draw.randrange(len(images)) for _ in range(draw.randint(2, 32))]
        response = client.post("/predict", content=to_npy(images[chosen]), headers={"content-type": NPY})
        if response.status_code != 200:
            return response, []
        batch = PredictedBatch.model_validate_json(response.content)
        if len(batch.predictions) != len(chosen):
            return response, ["a batch has another number of answers than images"]
        problems = (
            reference.problem(which, answer, batch) for which, answer in zip(chosen, batch.predictions, strict=True)
        )
        return response, [problem for problem in problems if problem]

    return send


def client(name: str, address: str, url: str, *, rate: float, send: Send, seed: int, tally: Tally) -> Any:
    """What asks `rate` times a second, at most, until it is told that it is over."""
    outcomes = tally.outcomes[name] = collections.Counter()
    seconds = tally.seconds[name] = []
    draw = random.Random(seed)

    def ask(over: threading.Event) -> None:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(base_url=url, transport=transport, timeout=120) as http:
            while not over.wait(draw.expovariate(rate)):
                start = time.monotonic()
                try:
                    response, problems = send(http, draw)
                except httpx.HTTPError as error:
                    time.sleep(0.2)  # a restart is noted by another thread
                    if tally.away(start, time.monotonic()):
                        outcomes["unreachable"] += 1
                    else:
                        outcomes["lost"] += 1
                        tally.bad.append(f"{name}: {type(error).__name__} after {time.monotonic() - start:.1f} s")
                    continue
                seconds.append(time.monotonic() - start)
                if problems:
                    outcomes["wrong"] += 1
                    tally.bad += [f"{name}: {problem}" for problem in problems]
                elif response.status_code == 200:
                    outcomes["degraded" if response.json()["degraded"] else "right"] += 1
                else:
                    code = ErrorAnswer.model_validate_json(response.content).error.code
                    outcomes[f"refused: {response.status_code} {code}"] += 1

    return ask


def do_faults(fleet: ServedFleet, seed: int, tally: Tally, counts: collections.Counter[str], over: Any) -> None:
    """One fault after the other, to devices and to the gateway; in the end everything is back."""
    draw = random.Random(seed)
    faults = RandomFaults(fleet, draw, FAULT_PAUSE_S)
    while not over.is_set():
        try:
            if draw.random() < RESTARTS:
                restart(fleet, draw, tally, counts)
                over.wait(FAULT_PAUSE_S)
            else:
                faults.do(1, over)
        except EdvitError:  # `/fleet` may be refused under such a load
            counts["put off"] += 1
        except AssertionError as error:  # a gateway or device does not come back
            tally.bad.append(f"faults: {error}")
    faults.return_all()
    counts.update(faults.counts)


def restart(fleet: ServedFleet, draw: random.Random, tally: Tally, counts: collections.Counter[str]) -> None:
    """Kill or end the gateway, and start it again."""
    window = [time.monotonic(), float("inf")]
    tally.restarts.append(window)
    if draw.random() < 0.5:
        counts["gateway killed"] += 1
    else:
        counts["gateway ended"] += 1
        fleet.gateway.terminate()
        with contextlib.suppress(Exception):
            fleet.gateway.wait(10)
    fleet.kill_gateway()
    fleet.start_gateway()
    window[1] = time.monotonic()


def attack(url: str, over: threading.Event) -> None:
    """Hostile uploads for some seconds of each minute, each time in a process of its own."""
    context = multiprocessing.get_context("spawn")
    while not over.wait(60 - HOSTILE_S):
        answers, begun, enough = context.SimpleQueue(), context.Event(), context.Event()
        attackers = context.Process(target=attack_with_everything, args=(url, begun, enough, answers))
        attackers.start()
        begun.wait(60)
        over.wait(HOSTILE_S)
        enough.set()
        answers.get()
        attackers.join()


def look(fleet: ServedFleet, start: float, tally: Tally, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        with contextlib.suppress(Exception):  # it is being started again
            tally.looks.append((time.monotonic() - start, *fleet.use()))


def files_of(bundle: Bundle, count: int) -> tuple[list[bytes], Any]:
    """JPEG and PNG files, and the arrays that they are decoded to."""
    rng = np.random.default_rng(7)
    files = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((160 + i, 120))
        buffer = io.BytesIO()
        coarse.save(buffer, format="JPEG" if i % 2 else "PNG")
        files.append(buffer.getvalue())
    return files, np.stack([to_array(data, bundle.manifest.preprocessing) for data in files])


@contextlib.contextmanager
def a_fleet(folder: Path) -> Iterator[ServedFleet]:
    with contextlib.ExitStack() as stack:
        bundle = write_tiny_bundle(folder / "bundle", submodels=DEVICES, classes=2 * DEVICES, size=64)
        fleet = ServedFleet(stack, bundle, folder)
        fleet.start_gateway()
        fleet.start_devices()
        fleet.wait_whole()
        yield fleet


def measure(minutes: float, seed: int, out: Path | None) -> int:
    """Returns how many answers were wrong or lost."""
    tally, counts = Tally(), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder, a_fleet(Path(folder)) as fleet:
        images = some_images(fleet.bundle, batch=32)
        reference = Reference(fleet.bundle, images)
        files, decoded = files_of(fleet.bundle, 8)
        kinds = {
            "arrays": (8.0, sends_image(NPY, [to_npy(image) for image in images], reference)),
            "more arrays": (4.0, sends_image(NPY, [to_npy(image) for image in images], reference)),
            "files": (4.0, sends_image(FILE, files, Reference(fleet.bundle, decoded))),
            "batches": (2.0, sends_batch(images, reference)),
        }
        clients = [
            client(name, f"127.0.0.{i + 2}", fleet.url, rate=rate, send=send, seed=seed + i, tally=tally)
            for i, (name, (rate, send)) in enumerate(kinds.items())
        ]
        start = time.monotonic()
        tally.looks.append((0.0, *fleet.use()))
        with running(*clients, partial(look, fleet, start, tally)):
            with running(
                lambda over: do_faults(fleet, seed, tally, counts, over), lambda over: attack(fleet.url, over)
            ):
                while time.monotonic() - start < 60 * minutes:
                    time.sleep(1)
            fleet.wait_whole()
            time.sleep(LOOK_S)
        tally.looks.append((time.monotonic() - start, *fleet.use()))
    return report(tally, counts, minutes, seed, out)


def report(tally: Tally, counts: collections.Counter[str], minutes: float, seed: int, out: Path | None) -> int:
    total = sum(tally.outcomes.values(), collections.Counter())
    sums = {name: total[name] for name in ("right", "degraded", "unreachable", "wrong", "lost")}
    sums["refused"] = sum(number for name, number in total.items() if name.startswith("refused"))
    print(f"{minutes:g} minutes, seed {seed}: {sums}")
    for name, outcomes in tally.outcomes.items():
        p50, p99 = np.percentile(tally.seconds[name] or [float("nan")], [50, 99]) * 1000
        print(f"  {name:12} {dict(outcomes)}; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"faults: {dict(counts)}")
    for text, number in collections.Counter(tally.bad).most_common(10):
        print(f"  {number} times: {text}")
    shown = tally.looks[:: max(1, len(tally.looks) // 30)]
    print("gateway: " + ", ".join(f"{at / 60:.0f} min {memory / 1e6:.0f} MB" for at, memory, *_ in shown))
    for name, (at, memory, threads, handles) in (("first", tally.looks[0]), ("last", tally.looks[-1])):
        print(f"gateway, {name}: {at:.0f} s, {memory / 1e6:.1f} MB, {threads} threads, {handles} handles")
    print(f"gateway, most: {max(memory for _, memory, *_ in tally.looks) / 1e6:.1f} MB")
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}"
    print(machine)
    if out is not None:
        record = {
            "minutes": minutes,
            "seed": seed,
            "machine": machine,
            "sums": sums,
            "outcomes": {name: dict(outcomes) for name, outcomes in tally.outcomes.items()},
            "faults": dict(counts),
            "bad": tally.bad[:100],
            "looks": tally.looks,
        }
        out.write_text(json.dumps(record, indent=1))
    return len(tally.bad)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write a record of the run there, JSON")
    options = parser.parse_args()
    sys.exit(1 if measure(options.minutes, options.seed, options.out) else 0)


if __name__ == "__main__":
    main()
