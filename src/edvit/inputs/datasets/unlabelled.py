"""A folder of images or sounds without labels, at any depth."""

from __future__ import annotations

import hashlib
from collections import defaultdict
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
    paths = _new(found, known)
    if not paths:
        raise DataError(f"{root}: every {what} in it is one of the labelled data set; give others")
    notes = [f"{len(paths):,} without labels"]
    if len(paths) < len(found):
        notes.append(
            f"{counted(len(found) - len(paths), what)} of {root.name} left out, which the data set has as well"
        )
    if skipped.kinds:
        notes.append(f"{skipped.kinds.total():,} of {counted(skipped.files, 'file')} of {root.name} skipped: {skipped}")
    kind = FileSounds if sounds else FileImages
    labels = np.zeros(len(paths), dtype=np.int64)
    return kind(classes=(), labels=labels, paths=tuple(paths), root=root, notes=tuple(notes))


def _new(paths: Sequence[Path], known: Sequence[Files]) -> list[Path]:
    """The files whose content is not that of a known one; files of a size that no known one has are not read."""
    of_size: dict[int, list[Path]] = defaultdict(list)
    for part in known:
        for path in part.paths:
            of_size[_size(path)].append(path)
    digests: dict[int, set[bytes]] = {}

    def is_known(path: Path) -> bool:
        size = _size(path)
        if size not in of_size:
            return False
        if size not in digests:
            digests[size] = {_digest(other) for other in of_size[size]}
        return _digest(path) in digests[size]

    return [path for path in paths if not is_known(path)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None
