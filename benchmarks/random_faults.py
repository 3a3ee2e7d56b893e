"""Devices are killed, stopped and brought back at random while requests come: what is lost, and what the gateway takes.

    python -m benchmarks.random_faults [--faults 200] [--seed 0] [--rate 20] [--pause 1.0] [--devices 4]

Runs `edvit serve` and one `edvit device` for each sub-model, all on loopback, over a made bundle (needs the onnx
package). Requests come in an open loop, each compared with the same bundle in this process. A fault is a `kill -9`, a
SIGSTOP, or the return of a device that is away (a new process, or SIGCONT); after each there is a pause of random
length, with the mean given. Two devices at least stay there and ready. Printed are the answers, how long they took,
and the gateway's memory, threads and handles (its decoding processes included) before and after.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import RandomFaults
from fleet_in_memory import some_images
from open_loop import OpenLoop
from reference import Reference
from served_fleet import ServedFleet
from tiny_bundle import write_tiny_bundle

SETTLE_S = 11.0
"""Seconds of rest before it is looked at what the gateway takes: workers end at the first request after ten of them."""


def at_rest(fleet: ServedFleet, images: Any) -> tuple[int, int, int]:
    """Memory (bytes), threads and handles of the gateway once nothing has been asked for a while."""
    time.sleep(SETTLE_S)
    fleet.predict(images[0])
    found: tuple[int, int, int] = fleet.use()
    return found


def measure(options: argparse.Namespace) -> int:
    """Returns how many answers were lost or wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle = write_tiny_bundle(
            Path(folder) / "bundle", submodels=options.devices, classes=2 * options.devices, size=options.size
        )
        images = some_images(bundle, batch=16)
        reference = Reference(bundle, images)
        fleet = ServedFleet(stack, bundle, Path(folder))
        fleet.start_gateway()
        fleet.start_devices()
        fleet.wait_whole()
        with contextlib.closing(OpenLoop(fleet.url, images, rate=options.rate)) as load:
            load.more(20 * round(options.rate))
        calm, before = load.asked, at_rest(fleet, images)
        faults = RandomFaults(fleet, random.Random(options.seed), options.pause)
        start = time.monotonic()
        with contextlib.closing(OpenLoop(fleet.url, images, rate=options.rate)) as load:
            faults.do(options.faults)
            faults.return_all()
            fleet.wait_whole()
        seconds = time.monotonic() - start
        after = at_rest(fleet, images)
    problems = load.problems(reference)
    degraded = sum(asked.answer is not None and asked.answer.degraded for asked in load.asked)
    print(f"{dict(faults.counts)} in {seconds:.0f} s, {options.devices} devices, seed {options.seed}")
    print(f"{len(load.asked)} requests: {len(problems)} lost or wrong, {degraded} degraded")
    for text, number in collections.Counter(problems).most_common(10):
        print(f"  {number} times: {text}")
    for name, asked in (("before", calm), ("during", load.asked)):
        p50, p99 = np.percentile([one.seconds for one in asked], [50, 99]) * 1000
        print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(one.seconds for one in asked):.2f} s")
    for name, (memory, threads, handles) in (("before", before), ("after", after)):
        print(f"gateway {name}: {memory / 1e6:.1f} MB, {threads} threads, {handles} handles")
    load_average = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load_average}, {platform.machine()}, Python {platform.python_version()}")
    return len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--pause", type=float, default=1.0, help="mean pause after a fault, seconds")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="pixels of an image, each way")
    sys.exit(1 if measure(parser.parse_args()) else 0)


if __name__ == "__main__":
    main()
