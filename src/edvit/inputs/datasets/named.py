"""CIFAR-10, MNIST and Fashion-MNIST: torchvision reads their files once, and a folder of PNG files is made of them.

The folder is an `imagefolder:` like any other and holds the same pixels. A machine without torchvision can read it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edvit.errors import DataError, EdvitError, MissingExtraError
from edvit.inputs.datasets.folder import CLASS_ORDER, folder_of_class, read_imagefolder
from edvit.inputs.datasets.images import ArrayImages, FileImages, Labels, Split, shorten
from edvit.inputs.preprocess import UInt8

FOLDERS = {"cifar10": "cifar-10-batches-py", "mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
"""Where torchvision puts the files, under the data root."""
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
"""Class names in the order of the labels in the files."""
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


def read_named(spec: str, split: Split, data_root: Path | None) -> FileImages:
    """The images of a split in the order of the data set's own files; the first call for a split makes its folder.

    The folder is `data_root/<spec>-images`, or one in the user's cache where the data root cannot be written to.

    Raises:
        DataError: files are missing or damaged, or no folder can be written.
        MissingExtraError: the folder is not made yet and torchvision is not installed.
    """
    if data_root is None and spec == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        root, places = DEBIAN_FASHION_MNIST, []
    elif data_root is None:
        debian = " (or `apt install dataset-fashion-mnist` on Debian)" if spec == "fashion-mnist" else ""
        raise DataError(f"{spec} needs --data-root: the folder that holds {FOLDERS[spec]}{debian}")
    else:
        root, places = data_root, [data_root / f"{spec}-images"]
    places.append(_cache() / f"{spec}-{hashlib.sha256(bytes(root.resolve())).hexdigest()[:8]}")
    place = next((place for place in places if (place / split).is_dir()), None)
    notes: tuple[str, ...] = ()
    if place is None:
        place = _write(_read(spec, split, root), split, places)
        notes = (f"made {place}: the images of {spec}, read from there from now on",)
    images = read_imagefolder(place, split)
    # A file is called by its image's place in the data set: a build draws by it.
    names = [path.name for path in images.paths]
    order = np.argsort(names)
    if [names[i] for i in order] != [f"{i:05}.png" for i in range(len(names))]:
        raise DataError(f"{place / split}: images were added or removed; remove the folder, and it is made again")
    return replace(images, labels=images.labels[order], paths=tuple(images.paths[i] for i in order), notes=notes)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edvit" / "datasets"


def _read(spec: str, split: Split, root: Path) -> ArrayImages:
    """A split as the data set's own files have it. Raises DataError, MissingExtraError."""
    try:
        pixels, labels = _cifar10(root, split) if spec == "cifar10" else _idx(root, split, root / FOLDERS[spec])
    except EdvitError:
        raise
    except Exception as error:  # torchvision raises nearly anything on a damaged file
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(
            f"{root}: the {split} files of {spec} are truncated, damaged or not the official ones ({reason}); "
            "get them again"
        ) from None
    classes = CLASSES[spec]
    if not 0 < len(pixels) == len(labels):
        raise DataError(f"{root}: {spec} has {len(pixels)} {split} images and {len(labels)} labels; get it again")
    if labels.max() >= len(classes):
        raise DataError(f"{root}: {spec} has {split} labels outside 0..{len(classes) - 1}; get it again")
    return ArrayImages(classes=classes, labels=labels, pixels=pixels, source=f"{spec} {split}")


def _write(images: ArrayImages, split: Split, places: Sequence[Path]) -> Path:
    """Write a folder of a split into the first of the places that can be written to, whole or not at all."""
    problems = []
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=place, prefix=".making-") as temporary:
                made = Path(temporary) / split
                for label in np.unique(images.labels):
                    (made / folder_of_class(images.classes[label])).mkdir(parents=True)
                for index, label in enumerate(images.labels):
                    path = made / folder_of_class(images.classes[label]) / f"{index:05}.png"
                    path.write_bytes(images.encoded(index))
                (Path(temporary) / CLASS_ORDER).write_text("".join(f"{name}\n" for name in images.classes), "utf-8")
                (Path(temporary) / CLASS_ORDER).replace(place / CLASS_ORDER)
                made.rename(place / split)
        except OSError as error:
            if not (place / split).is_dir():  # otherwise another process was faster
                problems.append(f"{place}: {error.strerror}")
                continue
        return place
    raise DataError(
        f"the images of {images.source} cannot be written ({'; '.join(problems)}); give another --data-root"
    )


def _demand(folder: Path, names: Sequence[str], hint: str = "") -> None:
    """Raises DataError when files are missing; it names them."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: missing {shorten(missing)}{hint}")


def _cifar10(root: Path, split: Split) -> tuple[UInt8, Labels]:
    """From `cifar-10-batches-py`, else from `cifar-10-batches-bin`, which torchvision does not read."""
    folder, plain = root / FOLDERS["cifar10"], root / "cifar-10-batches-bin"
    if plain.is_dir() and not folder.is_dir():
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
        _demand(plain, names)
        records = np.concatenate([np.fromfile(plain / name, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for name in names])
        return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)

    CIFAR10 = _torchvision().CIFAR10
    packed = root / CIFAR10.filename
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    _demand(folder, [*names, CIFAR10.meta["filename"]], f"; unpack {packed}" if packed.is_file() else "")
    # The files are pickles: torchvision compares their checksums before it loads them.
    official = CIFAR10(root, train=split == "train")
    return np.asarray(official.data, dtype=np.uint8), np.asarray(official.targets, dtype=np.int64)


def _idx(root: Path, split: Split, raw: Path) -> tuple[UInt8, Labels]:
    """From the folder `raw`, or else from `root` itself; plain or .gz."""
    mnist = _torchvision().mnist
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    place = raw if any(raw.glob(f"{prefix}-*-ubyte*")) or not any(root.glob(f"{prefix}-*-ubyte*")) else root
    _demand(place, [f"{name}.gz" if (place / f"{name}.gz").is_file() else name for name in names], " (plain or .gz)")
    with TemporaryDirectory() as temporary:
        images, labels = (_unpacked(place / name, Path(temporary)) for name in names)
        return mnist.read_image_file(str(images)).numpy(), mnist.read_label_file(str(labels)).numpy()


def _unpacked(path: Path, folder: Path) -> Path:
    """The file itself, or else the contents of its .gz, written into the folder."""
    if path.is_file():
        return path
    with gzip.open(f"{path}.gz") as packed, (folder / path.name).open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return folder / path.name


def _torchvision() -> Any:
    """The module of torchvision's data sets."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError):  # the second where it was built for another version of torch
        raise MissingExtraError(
            "a named data set is made into a folder by torchvision: pip install 'edvit[build]', "
            "or copy the folder that a build made of it and give imagefolder:DIR"
        ) from None
    return datasets
