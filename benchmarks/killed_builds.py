"""Builds that are killed in every stage at a random time and run again: do they end with the same bytes on the disk?

    OMP_NUM_THREADS=1 python -m benchmarks.killed_builds [--kills 50] [--seed 0] [-- OPTIONS OF EDVIT BUILD]

One build runs undisturbed. The others are killed by SIGKILL once in each stage, and end when they were killed in all.
Every result in their work folders, and the bundle, is compared by its digest, and all files by their sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from edvit.bundle import read_bundle

STAGES = ("data", "base", "teacher", "statistics", "prune", "recover", "export", "fuse", "test")
DEFAULT = ["--devices", "2", "--keep", "2/6", "--base-epochs", "2", "--recover-epochs", "2", "--no-baseline"]


def start(options: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """A build of digits, with a checkpoint about once a second."""
    command = [sys.executable, "-m", "edvit", "build", *options, "--checkpoint-every", "1", "-o", str(folder / "out")]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def kill_in(stage: str, process: subprocess.Popen[bytes], folder: Path, wait_s: float) -> bool:
    """Kill a build some time after a stage begins; False if it ends before."""
    while process.poll() is None:
        if list((folder / "out-work").glob(f".scratch-{stage}-*")):
            time.sleep(wait_s)
            break
        time.sleep(0.005)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def digests(folder: Path) -> dict[str, str]:
    """Of every result and of the bundle."""
    found = {path.parent.name: json.loads(path.read_text())["digest"] for path in folder.glob("out-work/*/done.json")}
    return {**found, "bundle": read_bundle(folder / "out").digest}


def left_behind(folder: Path, whole: Path) -> list[str]:
    """Files that killed builds left and the undisturbed one did not, or of another size; and hidden ones."""
    there, expected = sizes(folder), sizes(whole)
    hidden = {path.name for path in folder.glob("**/.*") if path.name != ".lock"}
    return sorted(hidden | {name for name in there.keys() | expected.keys() if there.get(name) != expected.get(name)})


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each result's files; the limit of the work folder is each folder's own."""
    files = [path for path in folder.glob("out-work/**/*") if path.is_file() and path.name != "limit.json"]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def main() -> None:
    """Print one line a kill, then how many builds ended alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="of edvit build")
    args = parser.parse_args()
    options, draws, kills = args.options or DEFAULT, random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = root / "whole"
        whole.mkdir()
        if start(options, whole, root / "whole.log").wait():
            raise SystemExit((root / "whole.log").read_text())
        expected, builds, same = digests(whole), 0, 0
        while kills.total() < args.kills:
            folder, log = root / str(builds), root / f"{builds}.log"
            folder.mkdir()
            for stage in STAGES:
                wait_s = draws.uniform(0, 6)
                if kills.total() < args.kills and kill_in(stage, start(options, folder, log), folder, wait_s):
                    kills[stage] += 1
                    print(f"killed in {stage} after {wait_s:.1f} s", flush=True)
            if start(options, folder, log).wait():
                raise SystemExit(log.read_text())
            resumed, left = log.read_text().count("resumed from step"), left_behind(folder, whole)
            builds += 1
            same += digests(folder) == expected and not left
            print(
                f"{kills.total()} kills, {same} of {builds} builds with the same digests, {resumed} times from a "
                f"checkpoint, left behind: {left}",
                flush=True,
            )
        print(dict(kills))


if __name__ == "__main__":
    main()
