"""Labelled images by data spec, one reader for training and for evaluation; needs neither torch nor the network.

    digits               scikit-learn's 1,797 hand-written digits, 1,437 train / 360 test
    imagefolder:DIR      DIR/train/<class>/* and DIR/test/<class>/* (or DIR/val)
    cifar10              --data-root with cifar-10-batches-py (or cifar-10-batches-bin)
    mnist                --data-root with MNIST/raw
    fashion-mnist        --data-root with FashionMNIST/raw, or Debian's dataset-fashion-mnist

Under --data-root lie the files as torchvision or the data set's own site leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edvit.datasets.images import LabelledImages, Split
from edvit.errors import DataError

__all__ = ["SPECS", "LabelledImages", "Split", "read_split"]

SPECS = ("digits", "imagefolder:DIR", "cifar10", "mnist", "fashion-mnist")


def read_split(spec: str, split: Split, data_root: Path | None = None) -> LabelledImages:
    """Find one split of a data set, read its labels, and check that it is whole; pixels are decoded on access.

    Args:
        spec: one of `SPECS`.
        split: `"train"` or `"test"`. A validation split is the caller's to cut from `"train"`.
        data_root: folder that holds the files of `cifar10`, `mnist` or `fashion-mnist`.

    Raises:
        DataError: the spec is unknown, or files are missing or damaged; the message names them.
        MissingExtraError: `digits` without scikit-learn.
    """
    images = _reader(spec)(split, data_root)
    if len(images) == 0:
        raise DataError(f"{spec}: the {split} split holds no images")
    return images


def _reader(spec: str) -> Callable[[Split, Path | None], LabelledImages]:
    from edvit.datasets import cifar, digits, folder, idx

    kind, _, argument = spec.partition(":")
    if kind == "imagefolder":
        if not argument:
            raise DataError("imagefolder needs a folder: imagefolder:DIR")
        return lambda split, _: folder.read_imagefolder(Path(argument).expanduser(), split)
    readers: dict[str, Callable[[Split, Path | None], LabelledImages]] = {
        "digits": lambda split, _: digits.read_digits(split),
        "cifar10": cifar.read_cifar10,
        "mnist": idx.read_mnist,
        "fashion-mnist": idx.read_fashion_mnist,
    }
    if spec not in readers:
        raise DataError(f"unknown data spec {spec!r}; known: {', '.join(SPECS)}")
    return readers[spec]
