"""Gateway overhead: from HTTP request to response, less the slowest sub-model's own run.

    python benchmarks/gateway_overhead.py [--bundle DIR] [--requests 300] [--runs 3] [--image-encoding webp]

Runs `edvit serve --local`, one process per device and one for the gateway, and asks one request after the other
from this process, over one connection of the standard library's http.client: a raw uint8 array, and, apart, a JPEG
of 640 x 480 pixels that the gateway decodes and resizes.
Without --bundle, one with two sub-models at 224 pixels is made (needs the onnx package), whose graphs do next to
nothing. On a machine with few cores a real bundle's devices compete with the gateway; the figure then shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from edvit.bundle import Bundle, read_bundle
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.wire.image_encoding import ENCODINGS

WARM_UP = 30


def make_bundle(folder: Path) -> Bundle:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny_bundle import write_tiny_bundle

    bundle: Bundle = write_tiny_bundle(folder / "bundle", submodels=2, classes=4, size=224)
    return bundle


def jpeg(rng: np.random.Generator) -> bytes:
    """640 x 480 pixels that compress about as well as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (480, 640, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(
        buffer, format="JPEG", quality=85
    )
    return buffer.getvalue()


@contextlib.contextmanager
def serving(bundle: Path, encoding: str) -> Iterator[str]:
    """HOST:PORT of `edvit serve --local`, in a process of its own as in real use."""
    command = [sys.executable, "-u", "-m", "edvit", "serve", str(bundle), "--local", "--port", "0"]
    command += ["--image-encoding", encoding]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout or ():
            if found := re.search(r"Gateway at http://(\S+)", line):
                yield found.group(1)
                return
        raise SystemExit("edvit serve did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def measure(address: str, body: bytes, media_type: str, requests: int) -> list[dict[str, float]]:
    """Milliseconds per request."""
    connection = http.client.HTTPConnection(address)
    rows = []
    for i in range(WARM_UP + requests):
        start = time.perf_counter()
        connection.request("POST", "/predict", body, {"content-type": media_type})
        answer = connection.getresponse().read()
        total = (time.perf_counter() - start) * 1000
        values = json.loads(answer)
        if values.get("degraded", True):
            raise SystemExit(f"no whole answer, so the figures would mean nothing: {answer.decode()}")
        t = values["timings"]
        if i >= WARM_UP:
            rows.append(
                {
                    "total": total,
                    "slowest run": t["slowest_run_ms"],
                    "overhead": total - t["slowest_run_ms"],
                    "of it: HTTP": total - t["total_ms"],
                    "of it: decode": t["decode_ms"],
                    "of it: wire and wait": t["gather_ms"] - t["slowest_run_ms"],
                    "of it: fuse": t["fuse_ms"],
                }
            )
    return rows


def report(name: str, runs: list[list[dict[str, float]]]) -> None:
    print(f"\n{name}: ms, over {sum(map(len, runs))} requests in {len(runs)} runs")
    print(f"  {'':22}{'median':>8}{'p10':>8}{'p90':>8}   medians of the runs")
    for key in runs[0][0]:
        values = [row[key] for run in runs for row in run]
        low, high = np.percentile(values, [10, 90])
        each = ", ".join(f"{statistics.median(row[key] for row in run):.2f}" for run in runs)
        print(f"  {key:22}{statistics.median(values):8.2f}{low:8.2f}{high:8.2f}   {each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="measure this bundle instead of a made one")
    parser.add_argument("--requests", type=int, default=300, help="per run and kind of request")
    parser.add_argument("--runs", type=int, default=3, help="services started one after the other")
    parser.add_argument("--image-encoding", choices=ENCODINGS, default="raw", help="of images on their way to devices")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    photo = jpeg(rng)
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(arguments.bundle) if arguments.bundle else make_bundle(Path(folder))
        manifest = bundle.manifest
        array = rng.integers(0, 256, manifest.preprocessing.shape, dtype=np.uint8)
        arrays, jpegs = [], []
        for _ in range(arguments.runs):
            with serving(bundle.path, arguments.image_encoding) as address:
                arrays.append(measure(address, to_npy(array), NPY, arguments.requests))
                jpegs.append(measure(address, photo, "image/jpeg", arguments.requests))
        devices = len({line.device for line in manifest.plan.placed})
        print(f"{devices} devices and the gateway on this machine: {platform.machine()}, {os.cpu_count()} cores")
        report(f"raw uint8 array {list(manifest.preprocessing.shape)}, {array.nbytes:,} bytes", arrays)
        report(f"JPEG 640 x 480, {len(photo):,} bytes", jpegs)


if __name__ == "__main__":
    main()
