"""torchvision's ImageFolder layout, `DIR/train/<class>/...` and `DIR/test/<class>/...`, of image or sound files."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.groups import groups_of
from edvit.inputs.datasets.images import FileImages, Files, FileSounds, Split, shorten
from edvit.inputs.datasets.order import natural_key
from edvit.inputs.datasets.splits import fixed_split, why_none
from edvit.inputs.datasets.tree import Places, Skipped, entries, is_clutter, look, overlap, text_name, why_skipped
from edvit.inputs.formats import EXTENSIONS
from edvit.units import counted

IMAGES = frozenset(EXTENSIONS)
"""torchvision's and more, lower case."""
SOUNDS = frozenset((".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".au", ".aif", ".aiff", ".aifc"))
"""The usual ones of those that libsndfile reads, lower case."""

CLASS_ORDER = "class_order.txt"
"""File in an image or sound folder that names its classes, one a line, in the order of their labels."""

NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folder of each split, in any case."""

ANNOTATIONS = frozenset(("labels", "annotations"))
"""Folders of boxes and outlines, in lower case, that data sets for detection (YOLO, COCO, VOC) have beside images."""

WORK_LOCK, MANIFEST = ".lock", "manifest.json"
"""Files by which a work folder and a bundle are known; builder/jobs/artifacts.py and bundle.py name them."""

F = TypeVar("F", bound=Files)


@dataclass(frozen=True)
class Layout:
    """The folders of a data set's splits; None where there is none. Where all are None, the classes lie in the root."""

    train: Path | None
    validation: Path | None
    test: Path | None
    others: tuple[str, ...] = ()
    """Names of other folders, which are not read."""


@dataclass(frozen=True)
class Tree:
    """Class folders and the files in them.

    Attributes:
        folders: class name -> its folders; more than one where the name is written in two forms of Unicode.
        files: class name -> its files.
        skipped: what is not read, by class name; `""` is what lies beside the class folders.
    """

    folders: dict[str, list[Path]]
    files: dict[str, list[Path]]
    skipped: dict[str, Skipped]


def folder_of_class(name: str) -> str:
    """The folder of a class: its name, with `-` for `/`."""
    return name.replace("/", "-")


def read_imagefolder(root: Path, split: Split, split_by: str | None = None) -> FileImages:
    """Image files by class folder, see `read_folder`."""
    return read_folder(root, split, FileImages, IMAGES, split_by)


def read_audiofolder(root: Path, split: Split, split_by: str | None = None) -> FileSounds:
    """Sound files by class folder, see `read_folder`."""
    return read_folder(root, split, FileSounds, SOUNDS, split_by)


def read_folder(root: Path, split: Split, kind: type[F], extensions: frozenset[str], split_by: str | None) -> F:
    """Classes are those of `class_order.txt`, or else the names of the folders under `train/` in timm's order.

    That order is natural and without regard to case: `1, 2, 10`, and `ant, Bee, cat`. Where there is no `train/`,
    classes are the folders under the split. `val/` (`valid/`, `validation/`) beside `train/` and `test/` belongs to the
    training split, which marks it as its validation images; it stands in for a missing `test/`. Class folders right
    under `root` are cut by `fixed_split`: a fifth of each class is the test split.

    Args:
        root: the data set's folder.
        split: which images are wanted.
        kind: class of the result.
        extensions: of the files that are read, lower case.
        split_by: see `groups_of`.

    Raises:
        DataError: a folder is missing or cannot be read, a class folder holds no such file or is what a build has
            made, a name is no text, or the split has a class that `class_order.txt` or `train/` lacks.
        ConfigError: as `groups_of`.
    """
    if not root.is_dir():
        raise DataError(f"{root}: is a file, and a folder is needed" if root.is_file() else f"{root}: no such folder")
    layout = layout_of(root)
    plain = layout.train is layout.validation is layout.test is None
    folders = [root] if plain else _split_folders(root, layout, split)
    places = _places(root, layout)
    trees = [read_tree(folder, extensions, places) for folder in folders]
    known, classes = _classes(root, layout, trees[0])
    position = {folder_of_class(name): label for label, name in enumerate(classes)}

    paths: list[Path] = []
    labels: list[int] = []
    ends: list[int] = []
    for folder, tree in zip(folders, trees, strict=True):
        unknown = [name for name in tree.files if name not in position]
        if unknown:
            raise DataError(f"{folder}: has classes that {known} lacks: {shorten(unknown)}")
        for name, files in tree.files.items():
            if not files:
                raise DataError(_empty(tree, name, extensions))
            paths += files
            labels += [position[name]] * len(files)
        ends.append(len(paths))
    made = kind(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        paths=tuple(paths),
        root=root,
        validation=np.arange(ends[0], ends[1], dtype=np.int64) if len(ends) > 1 else None,
        notes=_notes(root, layout, trees, folders),
    )
    if split_by is not None:
        made = made.with_groups(groups_of([made.key(index) for index in range(len(made))], split_by))
    return _cut(made, split, split_by) if plain else made


def layout_of(root: Path) -> Layout:
    """The folders of the splits. A folder that has a split's name and no folder in it is none.

    Raises:
        DataError: a split has two folders, or a split's folder has no class folders, or the whole data set lies one
            folder deeper, or what would be classes are splits or hold splits.
    """
    folders, _ = entries(root)
    named = {split: [path for path in folders if path.name.lower() in names] for split, names in NAMES.items()}
    whole = {split: [path for path in paths if entries(path)[0]] for split, paths in named.items()}
    for split, paths in whole.items():
        if len(paths) > 1:
            both = " and ".join(f"{path.name}/" for path in paths)
            raise DataError(f"{root}: has {both}, and both would be the {split} split; merge or rename one")
    of_splits = [path for paths in named.values() for path in paths]
    flat = [path for split, paths in named.items() for path in paths if path not in whole[split]]
    if flat and (any(whole.values()) or len(of_splits) == len(folders)):
        raise DataError(f"{flat[0]}: has no class folders; the layout is {flat[0]}/<class>/<file>")
    found = {split: paths[0] if paths else None for split, paths in whole.items()}
    if any(found.values()):
        others = tuple(path.name for path in folders if path not in of_splits)
        return Layout(found["train"], found["validation"], found["test"], others)
    if len(folders) == 1 and any(
        path.name.lower() in names for path in entries(folders[0])[0] for names in NAMES.values()
    ):
        raise DataError(f"{root}: the splits lie one folder deeper; give {folders[0]}")
    _check_no_hidden_splits(root, folders)
    return Layout(None, None, None)


def would_read(root: Path, path: Path) -> bool:
    """Whether a folder at `path` is read with the data set at `root`: as a class or a split, or as a part of one.

    Both may be written by way of links, and `path` need not exist. What is hidden is not read.

    Raises:
        DataError: as `layout_of`.
    """
    if not root.is_dir():
        return False
    layout = layout_of(root)
    splits = [folder for folder in (layout.train, layout.validation, layout.test) if folder is not None]
    # A class may be a link to a folder that lies elsewhere.
    linked = [own for folder in splits or [root] for own in entries(folder)[0] if own.is_symlink()]
    if any(_seen_in(place, path) for place in [*(splits or [root]), *linked]):
        return True
    names = {name for known in NAMES.values() for name in known}
    return bool(splits) and any(way.parts[:1] and way.parts[0].lower() in names for way in _seen_in(root, path))


def _seen_in(folder: Path, path: Path) -> list[Path]:
    """The ways from a folder to a path in it, as links are written and where they lead to; hidden ones are left out."""
    ways = [own.relative_to(place) for place in _spelt(folder) for own in _spelt(path) if own.is_relative_to(place)]
    return [way for way in ways if not any(is_clutter(part) for part in way.parts)]


def _spelt(path: Path) -> set[Path]:
    """Absolute forms of a path, in which no `..` is left: with its links, but for the last one, and without any."""
    forms = {path.absolute(), Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path))}
    return {form for form in forms if ".." not in form.parts}


def _check_no_hidden_splits(root: Path, folders: list[Path]) -> None:
    """Raises DataError where what would be classes are splits, or hold splits: test files would be learnt from."""
    if any(path.name.lower() in ANNOTATIONS for path in folders):
        return  # these are no classes, and what they are is told where one turns out to hold no images
    inner = {path.name: [folder.name for folder in entries(path)[0]] for path in folders}
    for name, names in inner.items():
        inside = {split: other for split, known in NAMES.items() for other in names if other.lower() in known}
        if "train" in inside and len(inside) > 1:
            train, test = inside["train"], inside.get("test") or inside["validation"]
            raise DataError(
                f"{root}: has its splits inside the classes, as in {name}/{train} and {name}/{test}; move them around "
                f"the classes: {root}/train/{name} and {root}/test/{name}"
            )
    trains, tests = ([name for name in inner if name.lower().startswith(split)] for split in ("train", "test"))
    for train, test in product(trains, tests):
        if inner[train] and inner[train] == inner[test]:
            raise DataError(
                f"{root}: {train}/ and {test}/ have the same folders and would be two classes; rename them to train "
                "and test"
            )


def _split_folders(root: Path, layout: Layout, split: Split) -> list[Path]:
    """The folder of a split, and for training that of the validation images as well."""
    if split == "train":
        if layout.train is None:
            raise DataError(f"{root}: has no train/ with a folder per class")
        between = [layout.validation] if layout.validation is not None and layout.test is not None else []
        return [layout.train, *between]
    test = layout.test or layout.validation
    if test is None:
        raise DataError(f"{root}: has no test/ or val/ with a folder per class")
    return [test]


def _classes(root: Path, layout: Layout, tree: Tree) -> tuple[Path, tuple[str, ...]]:
    """The class names in the order of their labels, and what says so."""
    order = root / CLASS_ORDER
    if order.is_file():
        return order, _ordered(order)
    if layout.train is None:
        return root, tuple(tree.files)
    return layout.train, tuple(class_folders(layout.train))


def _ordered(path: Path) -> tuple[str, ...]:
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len({folder_of_class(name) for name in names}) < len(names):
        raise DataError(f"{path}: names a class twice")
    return tuple(names)


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its folders, in timm's order. Raises DataError."""
    found: dict[str, list[Path]] = {}
    # By the name on the disk, as timm sorts; of a name in two forms the first counts.
    for path in sorted(entries(folder)[0], key=lambda path: natural_key(path.name)):
        if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            raise DataError(f"{path}: is a link to a folder around it, and would be a class of everything; remove it")
        found.setdefault(text_name(path), []).append(path)
    if not found:
        raise DataError(f"{folder}: has no class folders; the layout is {folder}/<class>/<file>")
    return found


def _places(root: Path, layout: Layout) -> Places:
    """The class folders of all splits, read now or not. Raises DataError where two are one folder."""
    splits = [folder for folder in (layout.train, layout.validation, layout.test) if folder is not None] or [root]
    every = [path for folder in splits for paths in class_folders(folder).values() for path in paths]
    both = overlap(every)
    if both is not None:
        raise DataError(
            f"{both[0]} and {both[1]}: are one folder by a link, or one lies in the other, and a file belongs to one "
            "class of one split; remove the link"
        )
    return Places(every)


def read_tree(folder: Path, extensions: frozenset[str], places: Places) -> Tree:
    """The class folders of a split, their files, and what is skipped. Raises DataError."""
    folders = class_folders(folder)
    tree = Tree(folders, {}, {})
    beside = [why_skipped(path, frozenset()) for path in entries(folder)[1] if path.name != CLASS_ORDER]
    tree.skipped[""] = Skipped(len(beside), Counter(filter(None, beside)))
    for name, own in folders.items():
        seen = [look(place, extensions, places) for place in own]
        tree.files[name] = [path for files, _ in seen for path in files]
        made = None if tree.files[name] else _made_by_build(own)
        if made is not None:
            raise DataError(f"{made[0]}: is {made[1]}, and no class; move it out of {folder}, and keep it")
        tree.skipped[name] = sum((skipped for _, skipped in seen), Skipped())
    return tree


def _made_by_build(places: Sequence[Path]) -> tuple[Path, str] | None:
    """What `edvit build` has made of some folders or of one right in them, and what that is in words."""
    for folder in (inner for place in places for inner in (place, *entries(place)[0])):
        if (folder / WORK_LOCK).is_file():
            return folder, "a work folder of edvit build"
        if (folder / MANIFEST).is_file() and any(folder.glob("*.onnx")):
            return folder, "a bundle"
    return None


def _empty(tree: Tree, name: str, extensions: frozenset[str]) -> str:
    if name.lower() in ANNOTATIONS and any(other.lower().endswith("images") for other in tree.folders):
        place = tree.folders[name][0].parent
        return (
            f"{place}: has a folder of images and {name}/, which is the layout of detection data (YOLO, COCO, VOC); a "
            f"folder for each class is needed: {place}/<class>/<file>"
        )
    what = "images" if extensions is IMAGES else "sound files"
    skipped = tree.skipped[name]
    why = f" ({skipped} skipped)" if skipped.files else ""
    return f"{tree.folders[name][0]}: a class folder with no {what}{why}; fill it or remove it"


def _cut(images: F, split: Split, split_by: str | None) -> F:
    """The split of a folder that has none of its own. Raises DataError where nothing would be left for testing."""
    names = [images.key(index) for index in range(len(images))]
    test = fixed_split(names, images.labels, images.copies, "test", images.groups)
    if len(test) == 0 and images.groups is not None:
        raise DataError(
            f"--split-by {split_by}: {why_none(images.groups, images.labels)}, so none can be left for testing; give "
            "more groups, or leave it out"
        )
    if len(test) == 0:
        raise DataError(f"{images.root}: no class has two files that differ, and none is left for testing: add files")
    how = "a fifth of each class, by the hash of each file's name"
    if images.groups is not None:
        how = "about a fifth of each class, in whole groups of --split-by"
    note = f"no train/ and no test/: {len(test):,} of {counted(len(images), 'file')} are for testing, {how}"
    chosen = test if split == "test" else np.setdiff1d(np.arange(len(images)), test)
    return images.take(chosen, note)


def _notes(root: Path, layout: Layout, trees: list[Tree], folders: list[Path]) -> tuple[str, ...]:
    notes = []
    if len(folders) > 1:
        notes.append(f"validation: {folders[1].name}/")
    if layout.others:
        notes.append(f"not read: {shorten([f'{name}/' for name in layout.others])} beside {folders[0].name}/")
    skipped: dict[str, Skipped] = {}
    for tree in trees:
        for name, some in tree.skipped.items():
            if some.kinds:
                skipped[name] = skipped.get(name, Skipped()) + some
    beside = skipped.pop("", None)
    if skipped:
        every = sum(skipped.values(), Skipped())
        where = shorten(list(skipped), 3)
        notes.append(f"{every.kinds.total():,} of {counted(every.files, 'file')} of {where} skipped: {every}")
    if beside:
        notes.append(f"{counted(beside.files, 'file')} beside the class folders skipped: {beside}")
    return tuple(notes)
