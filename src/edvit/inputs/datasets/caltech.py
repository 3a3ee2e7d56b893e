"""Caltech-256: `256_ObjectCategories/001.ak47/001_0001.jpg`, 256 categories and a 257th, *clutter*."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.folder import IMAGES
from edvit.inputs.datasets.images import FileImages, Split, shorten
from edvit.inputs.datasets.splits import fixed_split
from edvit.inputs.datasets.tree import files_under

FOLDER = "256_ObjectCategories"
CLASSES = 257


def read_caltech256(split: Split, data_root: Path | None) -> FileImages:
    """Caltech-256 from `data_root/256_ObjectCategories`, or as torchvision unpacks it, under `data_root/caltech256`.

    A class is called as its folder is, without the number. Files that are no images are passed over.

    Raises:
        DataError: a category is missing or has fewer than two images.
    """
    if data_root is None:
        raise DataError(f"caltech256 needs --data-root: the folder that holds {FOLDER}")
    candidates = [data_root / FOLDER, data_root / "caltech256" / FOLDER, data_root]
    folder = next((path for path in candidates if any(path.glob("001.*"))), candidates[0])
    numbered = {path.name[:3]: path for path in folder.glob("[0-9][0-9][0-9].*") if path.is_dir()}
    wanted = [f"{number:03}" for number in range(1, CLASSES + 1)]
    missing = [number for number in wanted if number not in numbered]
    if missing:
        raise DataError(
            f"{folder}: missing the folders of categories {shorten(missing)}; unpack the whole archive there"
        )
    paths, labels = [], []
    for label, number in enumerate(wanted):
        files = files_under(numbered[number], IMAGES)
        if len(files) < 2:
            raise DataError(f"{numbered[number]}: has {len(files)} images; unpack the archive again")
        paths += files
        labels += [label] * len(files)
    every = np.array(labels, dtype=np.int64)
    classes = tuple(numbered[number].name[4:] for number in wanted)
    images = FileImages(classes=classes, labels=every, paths=tuple(paths), root=folder)
    return images.take(fixed_split([path.name for path in paths], every, images.copies, split))
