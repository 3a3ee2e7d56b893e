"""A folder of images or sounds without labels, at any depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.folder import IMAGES, SOUNDS
from edvit.inputs.datasets.images import FileImages, Files, FileSounds
from edvit.inputs.datasets.tree import look
from edvit.units import counted


def read_unlabelled(root: Path, known: Sequence[Files], *, sounds: bool) -> Files:
    """Every image, or sound, under a folder, without those that are files of a labelled data set: byte for byte.

    Args:
        root: the folder.
        known: the splits of the data set. A test image must not be learnt from, and a training image is there already.
        sounds: whether sounds are wanted.

    Returns:
        The files; their labels are 0 and say nothing.

    Raises:
        DataError: there is no such folder, it cannot be read, or it holds no such file that is new.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file, and a folder is needed' if root.is_file() else 'no such folder'}")
    found, skipped = look(root, SOUNDS if sounds else IMAGES)
    what = "sound" if sounds else "image"
    if not found:
        raise DataError(f"{root}: holds no {what}s" + (f" ({skipped} skipped)" if skipped.kinds else ""))
    kind = FileSounds if sounds else FileImages
    every = kind(classes=(), labels=np.zeros(len(found), dtype=np.int64), paths=tuple(found), root=root)
    contents = {content for part in known for content in part.contents}
    new = np.flatnonzero([content not in contents for content in every.contents])
    if not len(new):
        raise DataError(f"{root}: every {what} in it is one of the labelled data set; give others")
    notes = [f"{len(new):,} without labels"]
    if len(new) < len(found):
        notes.append(f"{counted(len(found) - len(new), what)} of {root.name} left out, which the data set has as well")
    if skipped.kinds:
        notes.append(f"{skipped.kinds.total():,} of {counted(skipped.files, 'file')} of {root.name} skipped: {skipped}")
    return every.take(new, *notes)
