"""One device of a fleet dies or hangs under a steady load: what requests take, and when the fleet is whole again.

    python -m benchmarks.lost_device [--rate 20] [--before 10] [--away 20] [--devices 3]

Runs `edvit serve` and one `edvit device` for each sub-model, all on loopback, over a made bundle (needs the onnx
package), and asks in an open loop. Each device in turn is killed (`kill -9`) and stopped (SIGSTOP) and comes back after
some seconds. The first miss is the first answer that came without its sub-model. The fleet is whole when `/health`
says that every sub-model answers: another device has taken the lost one's after the grace time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from edvit.runtime.gateway.mending import MEND_AFTER_S
from fleet_in_memory import some_images
from open_loop import OpenLoop
from reference import Reference
from served_fleet import ServedFleet
from tiny_bundle import write_tiny_bundle
from waiting import eventually


def p99_ms(asked: list[Any]) -> float:
    """Milliseconds, nan where nothing was asked."""
    return float(np.percentile([one.seconds for one in asked], 99)) * 1000 if asked else float("nan")


def measure(fleet: Any, images: Any, reference: Any, *, name: str, kind: str, options: argparse.Namespace) -> int:
    """One fault, one line; returns how many answers were lost or wrong."""
    fleet.wait_whole()
    with contextlib.closing(OpenLoop(fleet.url, images, rate=options.rate)) as load:
        time.sleep(options.before)
        gone = time.monotonic()
        device = fleet.devices[name]
        (device.kill if kind == "kill" else device.stop)()
        eventually(lambda: fleet.health().status == "degraded", 60)
        eventually(lambda: fleet.health().status == "ready", 120)
        whole_s = time.monotonic() - gone
        time.sleep(max(0.0, options.away - whole_s))
        if kind == "kill":
            fleet.start_device(name)
        else:
            device.go_on()
        fleet.wait_whole()
    problems = load.problems(reference)
    before = [one for one in load.asked if one.due < gone - 0.5]
    misses = [one.due + one.seconds for one in load.asked if one.answer is not None and one.answer.degraded]
    miss = min(misses, default=gone)
    first = [one for one in load.asked if gone <= one.due < miss + 1]
    later = [one for one in load.asked if miss + 1 <= one.due < gone + options.away]
    degraded = len(misses)
    print(
        f"{kind:4} {name}: {len(load.asked)} asked, {len(problems)} lost or wrong, {degraded} degraded; p99 before "
        f"{p99_ms(before):.0f} ms, until 1 s after the first miss {p99_ms(first):.0f} ms, from then on "
        f"{p99_ms(later):.0f} ms; longest {max(one.seconds for one in load.asked):.2f} s; first miss after "
        f"{miss - gone:.2f} s; whole {whole_s - MEND_AFTER_S:+.1f} s after the grace time",
        flush=True,
    )
    for text in sorted(set(problems))[:5]:
        print(f"  {text}")
    return len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--before", type=float, default=10.0, help="seconds before the device is gone")
    parser.add_argument("--away", type=float, default=20.0, help="seconds for which it is gone, at least")
    parser.add_argument("--devices", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle = write_tiny_bundle(
            Path(folder) / "bundle", submodels=options.devices, classes=2 * options.devices, size=64
        )
        images = some_images(bundle, batch=16)
        fleet = ServedFleet(stack, bundle, Path(folder))
        fleet.start_gateway()
        fleet.start_devices()
        reference = Reference(bundle, images)
        bad = sum(
            measure(fleet, images, reference, name=name, kind=kind, options=options)
            for name in [*fleet.devices]
            for kind in ("kill", "stop")
        )
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
