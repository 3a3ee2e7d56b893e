"""Labelled images and sounds by data spec, one reader for training and evaluation; needs no network.

    digits               scikit-learn's 1,797 hand-written digits, 1,437 train / 360 test
    imagefolder:DIR      DIR/train/<class>/* and DIR/test/<class>/*, perhaps DIR/val/<class>/*; or DIR/<class>/*
    audiofolder:DIR      the same with sound files
    cifar10              --data-root with cifar-10-batches-py (or cifar-10-batches-bin)
    mnist                --data-root with MNIST/raw
    fashion-mnist        --data-root with FashionMNIST/raw, or Debian's dataset-fashion-mnist
    caltech256           --data-root with 256_ObjectCategories; it has no split of its own, see `splits`
    gtzan                --data-root with genres; likewise
    speech-commands      --data-root with speech_commands_v0.02; split by its authors' lists

The classes of a folder are in timm's order, natural and without regard to case (`1, 2, 10`; `ant, Bee, cat`), unless
class_order.txt gives another: weights that timm trained on the folder's classes have their outputs in this order.

Under --data-root lie the files as torchvision, torchaudio or the data set's own site leaves them. Of the first three
named sets a folder of images is made once, by torchvision, see `named`; the other three are one file a clip or image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from edvit.errors import ConfigError, DataError
from edvit.inputs.datasets.groups import groups_of
from edvit.inputs.datasets.images import FileSounds, LabelledImages, Split

__all__ = [
    "GREY",
    "SPECS",
    "FileSounds",
    "LabelledImages",
    "Split",
    "channels_of",
    "check_apart",
    "check_outside",
    "read_split",
]

SPECS = (
    "digits", "imagefolder:DIR", "audiofolder:DIR", "cifar10", "mnist", "fashion-mnist", "caltech256", "gtzan",
    "speech-commands",
)  # fmt: skip
FOLDERS = ("imagefolder", "audiofolder")
"""Kinds of specs that name a folder."""
GREY = ("digits", "mnist", "fashion-mnist")
"""Specs whose images are all grey."""


def channels_of(spec: str) -> Literal[1, 3]:
    """Channels that a model of the data set has unless it is told otherwise."""
    return 1 if spec in GREY else 3


def read_split(spec: str, split: Split, data_root: Path | None = None, split_by: str | None = None) -> LabelledImages:
    """Find one split of a data set, read its labels, and check that it is whole; pixels are decoded on access.

    Args:
        spec: one of `SPECS`.
        split: `"train"` or `"test"`. A validation split is the caller's to cut from `"train"`.
        data_root: folder that holds the files of a data set that has a name.
        split_by: what tells which files belong together (`groups.groups_of`); a folder without splits is cut by it too.

    Raises:
        DataError: the spec is unknown, or files are missing or damaged; the message names them.
        ConfigError: `split_by` is neither an expression nor a table.
        MissingExtraError: `digits` without scikit-learn.
    """
    images = _reader(spec, split_by)(split, data_root)
    if len(images) == 0:
        raise DataError(f"{spec}: the {split} split holds nothing")
    if split_by is not None and images.groups is None:
        return images.with_groups(groups_of([images.key(index) for index in range(len(images))], split_by))
    return images


def check_apart(spec: str, option: str, path: Path) -> None:
    """Whether a folder that is to be written lies where a data set of folders is not read, now and later.

    Args:
        spec: of the data set; nothing is checked where it has a name.
        option: that gives the folder, for the message.
        path: of the folder.

    Raises:
        ConfigError: it would be read as a class, a split, or a part of one.
        DataError: the data set cannot be read.
    """
    from edvit.inputs.datasets.folder import would_read

    kind, _, argument = spec.partition(":")
    root = Path(argument).expanduser()
    if kind in FOLDERS and argument and would_read(root, path):
        raise _inside(root, option, path)


def check_outside(root: Path, option: str, path: Path) -> None:
    """Raises ConfigError where a folder that is to be written lies in one whose files are all read, now and later."""
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root.expanduser())):
        raise _inside(root, option, path)


def _inside(root: Path, option: str, path: Path) -> ConfigError:
    whole = Path(os.path.realpath(root.expanduser()))
    beside = whole.with_name(path.name if path.name not in ("", whole.name) else f"{whole.name}-bundle")
    return ConfigError(
        f"{option} {path}: would be read as a part of the data in {root}; give a folder outside it, such as {beside}"
    )


def _reader(spec: str, split_by: str | None) -> Callable[[Split, Path | None], LabelledImages]:
    from edvit.inputs.datasets import caltech, digits, folder, gtzan, named, speech_commands

    kind, _, argument = spec.partition(":")
    if kind in FOLDERS:
        if not argument:
            raise DataError(f"{kind} needs a folder: {kind}:DIR")
        read = folder.read_imagefolder if kind == "imagefolder" else folder.read_audiofolder
        return lambda split, _: read(Path(argument).expanduser(), split, split_by)
    readers: dict[str, Callable[[Split, Path | None], LabelledImages]] = {
        "digits": lambda split, _: digits.read_digits(split),
        **{name: partial(named.read_named, name) for name in named.FOLDERS},
        "caltech256": caltech.read_caltech256,
        "gtzan": gtzan.read_gtzan,
        "speech-commands": speech_commands.read_speech_commands,
    }
    if spec not in readers:
        folder_like = Path(spec).expanduser().is_dir()
        hint = f"; of a folder: imagefolder:{spec}, or audiofolder:{spec} for sounds" if folder_like else ""
        raise DataError(f"unknown data spec {spec!r}{hint}; known: {', '.join(SPECS)}")
    return readers[spec]
