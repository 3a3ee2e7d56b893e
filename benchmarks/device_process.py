"""How soon a device process is ready, and how much memory it takes with a sub-model of 10 MB.

    python benchmarks/device_process.py [--starts 7] [--json]

Each start is a new `edvit device` process with an empty cache, connected over loopback to a gateway in this
process. Seconds are from the start of the process: until it is ready to be found, and until its sub-model has
answered a first inference. Memory is the resident set after 50 inferences, as the kernel reports it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from edvit.bundle import Bundle
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from free_port import free_endpoint
from tiny_bundle import write_tiny_bundle

TARGETS = {"found_s": 2.0, "ready_s": None, "resident_mb": 120.0, "end_s": 2.0}


def measure(bundle: Bundle, cache: Path) -> dict[str, float]:
    """One start of one device process: seconds and megabytes (10^6 bytes)."""
    endpoint = free_endpoint()
    command = [sys.executable, "-m", "edvit", "device", "--name", "dev-1", "--connect", endpoint, "--cache", str(cache)]
    with (
        closing(ZenohTransport(listen=[endpoint], scouting=False)) as transport,
        closing(Gateway(bundle, transport)) as gateway,
    ):
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            if "started" not in process.stdout.readline():
                raise SystemExit("the device did not start")
            found = time.perf_counter()
            gateway.wait_ready(30)
            ready = time.perf_counter()
            image = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)
            for _ in range(50):
                gateway.predict(image)
            resident = psutil.Process(process.pid).memory_info().rss
            end = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            ended = time.perf_counter()
        finally:
            process.kill()
            process.wait()
    return {"found_s": found - start, "ready_s": ready - start, "resident_mb": resident / 1e6, "end_s": ended - end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle", submodels=1, classes=2, size=224, ballast_bytes=10_000_000)
        runs = [measure(bundle, Path(folder) / f"cache-{i}") for i in range(options.starts)]
    table = {
        name: {
            "median": statistics.median(run[name] for run in runs),
            "least": min(run[name] for run in runs),
            "most": max(run[name] for run in runs),
            "target": target,
        }
        for name, target in TARGETS.items()
    }
    if options.json:
        print(json.dumps({"starts": options.starts, "figures": table}, indent=1))
        return
    print(f"{options.starts} starts   {'median':>8} {'least':>8} {'most':>8} {'target':>8}")
    for name, row in table.items():
        target = "-" if row["target"] is None else f"{row['target']:.2f}"
        print(f"{name:<11} {row['median']:8.2f} {row['least']:8.2f} {row['most']:8.2f} {target:>8}")


if __name__ == "__main__":
    main()
