"""What a build of many images takes: the most memory and the most disk, in each stage and in all.

    OMP_NUM_THREADS=1 python -m benchmarks.large_build [--images 50000] [--test 10000] [--folder DIR] \
        -- --model deit_tiny_patch16_224 --img-size 64 --base-epochs 1 --recover-epochs 2 --devices 2

The images are made here: noise around a colour of each class. Memory is that of the build and all its processes, twice
a second: what is theirs alone (anonymous), and with it the pages of mapped files, which the system takes back when it
needs them (resident, a shared page counted once). Disk is what the work folder and the bundle occupy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edvit.units import si

CLASSES = 10
EVERY_S = 0.5


@dataclass
class Peak:
    """Bytes at the worst moment, each figure for itself."""

    anonymous: int = 0
    resident: int = 0
    disk: int = 0

    def take(self, anonymous: int, resident: int, disk: int) -> None:
        """Another moment."""
        self.anonymous = max(self.anonymous, anonymous)
        self.resident = max(self.resident, resident)
        self.disk = max(self.disk, disk)

    def describe(self) -> str:
        """For a person."""
        return (
            f"memory {si(self.anonymous, 'B')}, with mapped files {si(self.resident, 'B')}, disk {si(self.disk, 'B')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="for training and validation")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side of an image file")
    parser.add_argument("--folder", type=Path, help="keeps images, work folder and bundle; default: a temporary one")
    parser.add_argument("options", nargs="*", help="of edvit build")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = args.folder or Path(name)
        data = root / f"images-{args.images}-{args.size}"
        if not data.exists():
            write_images(data, {"train": args.images, "test": args.test}, args.size)
        watch([*args.options, "--data", f"imagefolder:{data}"], root)


def write_images(folder: Path, counts: dict[str, int], size: int) -> None:
    """JPEG files of all classes in turn."""
    draws = np.random.default_rng(0)
    colours = draws.integers(40, 215, size=(CLASSES, 3))
    for split, count in counts.items():
        for label in range(CLASSES):
            (folder / split / f"class-{label}").mkdir(parents=True)
        for index in range(count):
            label = index % CLASSES
            pixels = np.clip(colours[label] + draws.normal(0, 60, size=(size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / f"class-{label}" / f"{index:06d}.jpg")


def watch(options: list[str], root: Path) -> None:
    """Run a build, print its console, and then what it took."""
    peaks: dict[str, Peak] = {}
    work, out, began = root / "out-work", root / "out", time.monotonic()
    command = [sys.executable, "-m", "edvit", "build", *options, "--work", str(work), "-o", str(out)]
    build, last = subprocess.Popen(command), ""
    try:
        while build.poll() is None:
            anonymous, resident = memory(build.pid)
            disk, stage = occupied(work) + occupied(out), stage_of(work)
            for name in ("in all", stage):
                peaks.setdefault(name, Peak()).take(anonymous, resident, disk)
            if stage != last and last:
                print(f"  {last:10} {peaks[last].describe()}", flush=True)
            last = stage
            time.sleep(EVERY_S)
    finally:
        build.terminate()
    for name, peak in peaks.items():
        print(f"{name:12} {peak.describe()}")
    print(f"{time.monotonic() - began:,.0f} s; the work folder keeps {si(occupied(work), 'B')}")
    if build.returncode:
        raise SystemExit(build.returncode)


def stage_of(work: Path) -> str:
    """The stage whose results are being made; `between` where none is."""
    names = sorted(path.name.split("-")[1] for path in work.glob(".scratch-*"))
    return names[0] if names else "between"


def memory(root: int) -> tuple[int, int]:
    """Anonymous and resident bytes of a process and of all that it has started."""
    anonymous = resident = 0
    for process in tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # it has ended
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        anonymous += sizes.get("Pss_Anon", sizes.get("Anonymous", 0))
        resident += sizes.get("Pss", 0)
    return anonymous, resident


def tree(root: int) -> Iterator[int]:
    """A process and its descendants, as far as they live."""
    yield root
    try:
        threads = list(Path(f"/proc/{root}/task").iterdir())
        children = [(thread / "children").read_text(encoding="ascii") for thread in threads]
    except OSError:
        return
    for child in " ".join(children).split():
        yield from tree(int(child))


def occupied(folder: Path) -> int:
    """Bytes that a folder's files take on the disk; what is removed meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(parent) / name).lstat()
            except OSError:
                continue
            total += status.st_blocks * 512 // status.st_nlink
    return total


if __name__ == "__main__":
    main()
