"""Two builds side by side against the same two one after the other: seconds, and seconds of processors.

    python -m benchmarks.side_by_side [--runs 3] [-- OPTIONS OF EDVIT BUILD]

The builds differ in their seed alone. `GOMP_SPINCOUNT=300000` in the environment gives what GCC's OpenMP does by
default, where waiting threads spin.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT = ["--devices", "5", "--keep", "2/6", "--base-epochs", "2", "--recover-epochs", "1", "--no-baseline"]


@dataclass(frozen=True)
class Taken:
    """What two builds took: seconds, and seconds of processors."""

    wall_s: float
    cpu_s: float


def measure(options: Sequence[str], *, together: bool) -> Taken:
    """Two builds in a folder of their own, at the same time or one after the other."""
    start, before = time.monotonic(), _cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        running: list[subprocess.Popen[bytes]] = []
        for seed in (0, 1):
            command = [sys.executable, "-m", "edvit", "build", *options, "--seed", str(seed)]
            command += ["-o", str(Path(folder) / str(seed))]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            if not together:
                _finish(running)
        _finish(running)
        return Taken(time.monotonic() - start, _cpu_s() - before)


def _finish(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.wait():
            raise SystemExit("a build failed")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print each run, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of edvit build")
    args = parser.parse_args()
    wall, cpu = [], []
    for _ in range(args.runs):
        alone, beside = (measure(args.options or DEFAULT, together=together) for together in (False, True))
        wall.append(beside.wall_s / alone.wall_s)
        cpu.append(beside.cpu_s / alone.cpu_s)
        print(
            f"one after the other {alone.wall_s:.0f} s, {alone.cpu_s:.0f} s of processors; "
            f"side by side {beside.wall_s:.0f} s, {beside.cpu_s:.0f} s of processors",
            flush=True,
        )
    print(f"side by side / one after the other: {statistics.median(wall):.2f} in time, ", end="")
    print(f"{statistics.median(cpu):.2f} in processor time (median of {args.runs})")


if __name__ == "__main__":
    main()
