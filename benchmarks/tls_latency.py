"""What keys cost a request: HTTPS, a token and TLS to every device, next to none of it, asked in turns.

    python -m benchmarks.tls_latency [--bundle DIR] [--requests 300] [--runs 3]

Two services of one bundle run side by side, each with a gateway and a process per device, over the loopback interface:
one with keys, one without. This process asks them in turns, over one kept connection each, so that whatever else the
machine does meets both. A ratio is that of two neighbouring requests. Without --bundle, one with two sub-models at
224 pixels is made, whose graphs do next to nothing: their time is that of the service.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gateway_overhead import WARM_UP, make_bundle
from edvit.bundle import Bundle, read_bundle
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.keys import authority, membership
from edvit.runtime.keys.tokens import add_token
from edvit.runtime.local import free_port

READY_S = 120.0
Ask = tuple[http.client.HTTPConnection, dict[str, str]]


def make_keys(folder: Path, names: list[str]) -> str:
    """Keys for a gateway and its devices, all in one folder; returns a token."""
    now = datetime.now(timezone.utc)
    authority.make_authority(folder, ["127.0.0.1"], now)
    for name in names:
        request, _ = membership.request(folder, name)
        membership.accept(folder, authority.issue(folder, request, now).certificates)
    return add_token(folder, "benchmark", ["predict", "watch"], now)


@contextlib.contextmanager
def service(bundle: Bundle, folder: Path, keys: Path | None, token: str) -> Iterator[Ask]:
    """A connection to a gateway whose devices are ready, and the headers that it wants."""
    plan = bundle.manifest.plan
    endpoint = f"{'tls' if keys else 'tcp'}/127.0.0.1:{free_port()}"
    extra = ["--keys", str(keys)] if keys else []
    edvit = [sys.executable, "-u", "-m", "edvit"]
    serve = [*edvit, "serve", str(bundle.path), "--port", "0", "--listen", endpoint, *extra]
    if keys:
        serve += ["--rate-limit", "1000000/second"]
    gateway = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    processes: list[subprocess.Popen[Any]] = [gateway]
    for name in sorted({line.device for line in plan.placed}):
        device = [*edvit, "device", "--name", name, "--fleet", plan.fleet.name, "--connect", endpoint, *extra]
        device += ["--threads", "1", "--cache", str(folder / "cache")]
        processes.append(subprocess.Popen(device, stdout=subprocess.DEVNULL))
    try:
        found = next(filter(None, (re.search(r"Gateway at https?://(\S+)", line) for line in gateway.stdout or ())))
        connection: http.client.HTTPConnection = http.client.HTTPConnection(found.group(1))
        if keys:
            trust = ssl.create_default_context(cafile=keys / "ca.crt")
            connection = http.client.HTTPSConnection(found.group(1), context=trust)
        headers = {"content-type": NPY} | ({"authorization": f"Bearer {token}"} if keys else {})
        until = time.monotonic() + READY_S
        while '"ready"' not in get(connection, "/health", headers):
            if time.monotonic() > until:
                raise SystemExit("the devices did not become ready")
            time.sleep(0.1)
        yield connection, headers
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> str:
    connection.request("GET", path, headers=headers)
    return connection.getresponse().read().decode()


def ask(service: Ask, body: bytes) -> float:
    """Milliseconds of one prediction."""
    connection, headers = service
    start = time.perf_counter()
    connection.request("POST", "/predict", body, headers)
    answer = json.loads(connection.getresponse().read())
    if answer.get("degraded", True):
        raise SystemExit(f"no whole answer, so the figures would mean nothing: {answer}")
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="measure this bundle instead of a made one")
    parser.add_argument("--requests", type=int, default=300, help="pairs of requests in a run")
    parser.add_argument("--runs", type=int, default=3, help="services started one after the other")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = read_bundle(arguments.bundle) if arguments.bundle else make_bundle(folder)
        shape = bundle.manifest.preprocessing.shape
        token = make_keys(folder / "keys", sorted({line.device for line in bundle.manifest.plan.placed}))
        body = to_npy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        pairs: list[tuple[float, float]] = []
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(body):,} bytes")
        for run in range(arguments.runs):
            with (
                service(bundle, folder / "plain", None, "") as plain,
                service(bundle, folder / "keyed", folder / "keys", token) as keyed,
            ):
                found = []
                for i in range(WARM_UP + arguments.requests):
                    first = (ask(plain, body), 0.0) if i % 2 else (0.0, ask(keyed, body))
                    pair = (first[0], ask(keyed, body)) if i % 2 else (ask(plain, body), first[1])
                    found += [pair] if i >= WARM_UP else []
            pairs += found
            report(f"run {run + 1}", found)
        report("all", pairs)


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    plain, keyed = np.array(pairs).T
    low, middle, high = np.percentile(keyed / plain, [25, 50, 75])
    print(
        f"{name}: without keys {np.median(plain):.2f} ms, with {np.median(keyed):.2f} ms; "
        f"ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    main()
