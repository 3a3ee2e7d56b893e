"""MNIST and Fashion-MNIST: idx files, plain or gzipped (format: https://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.images import ArrayImages, Split, check_labels
from edvit.inputs.preprocess import UInt8

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

MAX_BYTES = 1 << 30
"""An idx file that claims to hold more is refused (the largest real one holds 47 MB)."""


def read_mnist(split: Split, data_root: Path | None) -> ArrayImages:
    """MNIST from `data_root/MNIST/raw`, or from `data_root` itself."""
    if data_root is None:
        raise DataError("mnist needs --data-root: the folder that holds MNIST/raw")
    return _read([data_root / "MNIST" / "raw", data_root], split, DIGITS, "mnist")


def read_fashion_mnist(split: Split, data_root: Path | None) -> ArrayImages:
    """Fashion-MNIST from `data_root/FashionMNIST/raw`, from `data_root` itself, or else from Debian's package."""
    if data_root is not None:
        return _read([data_root / "FashionMNIST" / "raw", data_root], split, CLOTHES, "fashion-mnist")
    if not DEBIAN_FASHION_MNIST.is_dir():
        raise DataError(
            "fashion-mnist needs --data-root: the folder that holds FashionMNIST/raw "
            "(on Debian, `apt install dataset-fashion-mnist` does without)"
        )
    return _read([DEBIAN_FASHION_MNIST], split, CLOTHES, "fashion-mnist")


def _read(folders: list[Path], split: Split, classes: tuple[str, ...], name: str) -> ArrayImages:
    prefix = "train" if split == "train" else "t10k"
    files = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    folder = next((folder for folder in folders if any(_find(folder, file) for file in files)), folders[0])
    missing = [file for file in files if _find(folder, file) is None]
    if missing:
        raise DataError(f"{folder}: missing {' and '.join(missing)} (plain or .gz)")
    images_path, labels_path = (cast(Path, _find(folder, file)) for file in files)
    pixels = read_idx(images_path, dimensions=3)
    labels = read_idx(labels_path, dimensions=1).astype(np.int64)
    if len(pixels) != len(labels):
        raise DataError(f"{images_path}: has {len(pixels)} images, but {labels_path.name} has {len(labels)} labels")
    check_labels(labels, len(classes), labels_path)
    return ArrayImages(classes=classes, labels=labels, pixels=pixels, source=f"{name} {split}")


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> UInt8:
    """An idx file of unsigned bytes with that many dimensions.

    Raises:
        DataError: the file cannot be read, is of another kind, or is shorter or longer than its header says.
    """
    try:
        with _open(path) as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) != 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimension(s)")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise DataError(f"{path}: claims to hold {size:,} bytes, over {MAX_BYTES:,}; get it again")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, truncated or damaged ({type(error).__name__})") from None
    if len(data) != size:
        more = "more" if len(data) > size else "less"
        raise DataError(f"{path}: holds {more} than the {size:,} bytes its header announces; get it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
