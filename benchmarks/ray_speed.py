"""What a second node of a Ray cluster buys: the same four sub-models recovered on one one-core node, then on two.

    python benchmarks/ray_speed.py --epochs 60 --runs 3

Starts the nodes on this machine, which needs two cores that have nothing else to do, and trains on scikit-learn's
digits. Seconds are those of the stage as `edvit build` shows it; the nodes' processes have been started by then.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
PORT = 6379


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path, which Ray's sockets need
    head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
    nodes = [start(head, folder / "head.log")]
    try:
        recovery_seconds(folder, epochs=1)
        one = [recovery_seconds(folder, args.epochs) for _ in range(args.runs)]
        nodes.append(start([f"--address=127.0.0.1:{PORT}"], folder / "worker.log"))
        recovery_seconds(folder, epochs=1)
        two = [recovery_seconds(folder, args.epochs) for _ in range(args.runs)]
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    for name, seconds in (("one node", one), ("two nodes", two)):
        print(f"{name:10} median {statistics.median(seconds):4.0f} s ({min(seconds):.0f}-{max(seconds):.0f} s)")
    print(f"{statistics.median(one) / statistics.median(two):.2f}x faster")


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A node, once it has joined."""
    with log.open("w") as file:
        node = subprocess.Popen([*RAY, *arguments], stdout=file, stderr=file)
    while "Ray runtime started" not in log.read_text():
        if node.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.2)
    return node


def recovery_seconds(folder: Path, epochs: int) -> float:
    """Seconds that the recovery of four sub-models takes, done anew."""
    options = "--data digits --devices 4 --no-baseline --views 2 --base-epochs 1 --calibration 16 --force recover"
    build = [sys.executable, "-m", "edvit", "build", *options.split(), "--recover-epochs", str(epochs)]
    build += ["--ray", f"127.0.0.1:{PORT}", "--work", str(folder / "work"), "-o", str(folder / "bundle")]
    said = subprocess.run(build, capture_output=True, text=True, check=True).stdout
    found = re.search(r"recover .*?([\d,]+) s$", said, flags=re.MULTILINE)
    if found is None:
        raise SystemExit(said)
    return float(found[1].replace(",", ""))


if __name__ == "__main__":
    main()
