"""torchvision's ImageFolder layout, `DIR/train/<class>/...` and `DIR/test/<class>/...`, of image or sound files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.images import FileImages, Files, FileSounds, Split, shorten
from edvit.inputs.datasets.order import in_order
from edvit.inputs.formats import EXTENSIONS

IMAGES = frozenset(EXTENSIONS)
"""torchvision's and more, lower case."""
SOUNDS = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".au", ".aif", ".aiff"))
"""The usual ones of those that libsndfile reads, lower case."""

CLASS_ORDER = "class_order.txt"
"""File in an image or sound folder that names its classes, one a line, in the order of their labels."""

F = TypeVar("F", bound=Files)


def folder_of_class(name: str) -> str:
    """The folder of a class: its name, with `-` for `/`."""
    return name.replace("/", "-")


def read_imagefolder(root: Path, split: Split) -> FileImages:
    """Image files by class folder, see `read_folder`."""
    return read_folder(root, split, FileImages, IMAGES)


def read_audiofolder(root: Path, split: Split) -> FileSounds:
    """Sound files by class folder, see `read_folder`."""
    return read_folder(root, split, FileSounds, SOUNDS)


def read_folder(root: Path, split: Split, kind: type[F], extensions: frozenset[str]) -> F:
    """Classes are those of `class_order.txt`, or else the names of the folders under `train/` in timm's order.

    That order is natural and without regard to case: `1, 2, 10`, and `ant, Bee, cat`.

    Where there is no `train/`, classes are the folders under the split. `val/` stands in for a missing `test/`.
    A folder with neither `train/`, `test/` nor `val/` is itself read as the test split: class folders right under it.

    Raises:
        DataError: a folder is missing or holds no such file, or the split has a class that `class_order.txt` or
            `train/` lacks.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    folder = _split_folder(root, split)
    found = _class_names(folder)
    train, order = root / "train", root / CLASS_ORDER
    if order.is_file():
        known, classes = order, _ordered(order)
    else:
        known, classes = train, _class_names(train) if train.is_dir() else found
    folders = [folder_of_class(name) for name in classes]
    unknown = [name for name in found if name not in folders]
    if unknown:
        raise DataError(f"{folder}: has classes that {known} lacks: {shorten(unknown)}")

    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        files = files_under(folder / name, extensions)
        if not files:
            what = "images" if extensions is IMAGES else "sound files"
            raise DataError(f"{folder / name}: a class folder with no {what}; fill it or remove it")
        paths += files
        labels += [folders.index(name)] * len(files)
    return kind(classes=classes, labels=np.array(labels, dtype=np.int64), paths=tuple(paths))


def _ordered(path: Path) -> tuple[str, ...]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    if len({folder_of_class(name) for name in names}) < len(names):
        raise DataError(f"{path}: names a class twice")
    return tuple(names)


def _split_folder(root: Path, split: Split) -> Path:
    names = ("train",) if split == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    if split == "test" and not (root / "train").is_dir():
        return root
    raise DataError(f"{root}: has no {' or '.join(f'{name}/' for name in names)} with a folder per class")


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = in_order(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({type(error).__name__})") from None
    if not names:
        raise DataError(f"{folder}: has no class folders; the layout is {folder}/<class>/<file>")
    return tuple(names)


def files_under(folder: Path, extensions: frozenset[str]) -> list[Path]:
    """Files of those kinds at any depth, sorted; links to folders are followed, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here, real = Path(place), os.path.realpath(place)
        if real in seen:  # a link to what was read already, perhaps to a folder around it
            folders.clear()
            continue
        seen.add(real)
        links = {name for name in folders if (here / name).is_symlink()}
        folders[:] = [*sorted(set(folders) - links), *sorted(links)]  # a real folder gives its files their names
        found += (here / name for name in names if Path(name).suffix.lower() in extensions)
    return sorted(path for path in found if path.is_file())
