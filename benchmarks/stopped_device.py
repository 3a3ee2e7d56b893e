"""One device of a fleet stops answering under load: good answers per second, second by second.

    python -m benchmarks.stopped_device [--bundle DIR] [--clients 32] [--before 10] [--stopped 10] [--after 10]
                                        [--replicas 1 2]

Runs `edvit serve --local` and asks it from closed-loop clients, each over one connection of its own. After some
seconds one device is stopped (SIGSTOP), as a board that hangs; later it goes on (SIGCONT). Printed are the answers with
status 200 of each second, the longest of them, and the states that `/health` and `/fleet` tell. Without --bundle, one
with five sub-models at 224 pixels is made (needs the onnx package), whose graphs do next to nothing. With more than one
number of replicas each is measured in turn, and a table shows them side by side.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from edvit.bundle import Bundle, read_bundle
from edvit.runtime.http.body import NPY, to_npy
from edvit.units import counted


def make_bundle(folder: Path) -> Bundle:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny_bundle import write_tiny_bundle

    bundle: Bundle = write_tiny_bundle(folder / "bundle", submodels=5, classes=10, size=224)
    return bundle


class Load:
    """Clients that ask one request after the other until they are told to end."""

    def __init__(self, address: str, body: bytes, clients: int) -> None:
        self.answers: list[tuple[float, float, int, bool]] = []
        """When each answer came and how long it took, seconds, its status, and whether it was degraded."""
        self._address, self._body = address, body
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address)
        while not self._end.is_set():
            start = time.monotonic()
            connection.request("POST", "/predict", body=self._body, headers={"Content-Type": NPY})
            response = connection.getresponse()
            answer = json.loads(response.read())
            now = time.monotonic()
            self.answers.append((now, now - start, response.status, bool(answer.get("degraded"))))

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def get(address: str, path: str) -> dict[str, object]:
    connection = http.client.HTTPConnection(address)
    connection.request("GET", path)
    found: dict[str, object] = json.loads(connection.getresponse().read())
    return found


def device_pid(gateway: int, name: str) -> int:
    for child in psutil.Process(gateway).children(recursive=True):
        command = child.cmdline()
        if "--name" in command and command[command.index("--name") + 1] == name:
            return child.pid
    raise SystemExit(f"no device {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--before", type=int, default=10, help="seconds before the device stops")
    parser.add_argument("--stopped", type=int, default=10, help="seconds for which it is stopped")
    parser.add_argument("--after", type=int, default=10, help="seconds after it goes on")
    parser.add_argument("--replicas", type=int, nargs="+", choices=(1, 2), default=[1])
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(options.bundle) if options.bundle else make_bundle(Path(folder))
        for replicas in options.replicas:
            print(f"{counted(replicas, 'replica')}:")
            found.append(measure(bundle, options, replicas))
    print(f"load average {os.getloadavg()[0]:.1f}")
    for name in found[0]:
        print(f"{name:60s}", *(f"{figures[name]:10.2f}" for figures in found))


def measure(bundle: Bundle, options: argparse.Namespace, replicas: int) -> dict[str, float]:
    """Figures by what they are."""
    shape = bundle.manifest.preprocessing.shape
    body = to_npy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    command = [sys.executable, "-u", "-m", "edvit", "serve", str(bundle.path), "--local", "--port", "0"]
    command += ["--replicas", str(replicas)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        urls = (re.search(r"Gateway at http://(\S+)", line) for line in process.stdout or ())
        address = next(found.group(1) for found in urls if found)
        name = bundle.manifest.plan.placed[1].device
        pid = device_pid(process.pid, name)
        while get(address, "/health")["without_copy"]:
            time.sleep(0.1)
        load = Load(address, body, options.clients)
        time.sleep(options.before)
        stopped = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        states = []
        for _ in range(options.stopped):
            time.sleep(1)
            devices = get(address, "/fleet")["devices"]
            assert isinstance(devices, list)
            state = next(device["state"] for device in devices if device["name"] == name)
            states.append(f"{get(address, '/health')['status']}, {state}")
        went_on = time.monotonic()
        os.kill(pid, signal.SIGCONT)
        time.sleep(options.after)
        load.close()
        print(f"copies asked: {get(address, '/fleet')['copies_asked']}")
        return report(load, options, stopped, went_on, states)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def report(
    load: Load, options: argparse.Namespace, stopped: float, went_on: float, states: list[str]
) -> dict[str, float]:
    seconds = range(-options.before + 2, options.stopped + options.after)
    rows = {}
    for second in seconds:
        here = [answer for answer in load.answers if second <= answer[0] - stopped < second + 1]
        rows[second] = [answer for answer in here if answer[2] == 200]
        bad = len(here) - len(rows[second])
        longest = max((took for _, took, *_ in here), default=0.0)
        degraded = sum(degraded for *_, degraded in rows[second])
        told = states[second] if 0 <= second < len(states) else ""
        good = len(rows[second])
        print(f"{second:4d} s  {good:4d} good  {degraded:4d} degraded  {bad:3d} bad  {longest:5.2f} s  {told}")
    before = statistics.mean(len(rows[second]) for second in seconds if second < 0)
    during = [len(rows[second]) / before for second in seconds if 1 <= second < options.stopped]
    whole = [at for at, _, status, degraded in load.answers if at > went_on and status == 200 and not degraded]
    least, mean = 100 * min(during), 100 * statistics.mean(during)
    print(f"before: {before:.1f}/s; from the second second on: at least {least:.0f} % of it, {mean:.0f} % in the mean")
    print(f"first whole answer {min(whole) - went_on:.2f} s after the device went on")
    print(
        f"{options.clients} clients, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )
    gone = [answer for answer in load.answers if 0 <= answer[0] - stopped < options.stopped]
    return {
        "good answers a second before": before,
        "least of it from the second second on, %": least,
        "mean of it from the second second on, %": mean,
        "answers while the device is stopped": len(gone),
        "of these degraded": sum(degraded for *_, status, degraded in gone if status == 200),
        "of these without status 200": sum(status != 200 for _, _, status, _ in gone),
        "longest of these, s": max(took for _, took, *_ in gone),
    }


if __name__ == "__main__":
    main()
