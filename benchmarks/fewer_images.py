"""A data set with fewer training images, as an image folder: for tables of many builds on a small machine.

    python benchmarks/fewer_images.py --data fashion-mnist --train-images 1000 -o fashion-1000

The first so many training images of each class, and every test image, as PNG files without loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edvit.inputs.datasets import LabelledImages, read_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="digits, cifar10, mnist or fashion-mnist, whose images are PNG files without loss"
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--train-images", type=int, required=True, help="of each class")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    train, test = (read_split(args.data, split, args.data_root) for split in ("train", "test"))
    chosen = np.sort(np.concatenate([first(train, label, args.train_images) for label in range(len(train.classes))]))
    write(train, chosen, args.out / "train")
    write(test, np.arange(len(test)), args.out / "test")
    print(f"{args.out}: {len(chosen):,} training images, {len(test):,} test images, {len(train.classes)} classes")


def first(images: LabelledImages, label: int, count: int) -> np.ndarray:
    """Indices of the first `count` images of a class."""
    return np.flatnonzero(images.labels == label)[:count]


def write(images: LabelledImages, indices: np.ndarray, folder: Path) -> None:
    """One file an image, in a folder a class."""
    for index in indices:
        name = images.classes[images.labels[index]].replace("/", "-")
        path = folder / name / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encoded(int(index)))


if __name__ == "__main__":
    main()
