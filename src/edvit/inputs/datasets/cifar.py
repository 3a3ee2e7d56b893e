"""CIFAR-10 in its two official forms: `cifar-10-batches-py` (pickles) and `cifar-10-batches-bin` (plain bytes).

The pickles are read by an unpickler that knows four harmless names and refuses everything else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.images import ArrayImages, Labels, Split, check_labels
from edvit.inputs.preprocess import UInt8

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


def read_cifar10(split: Split, data_root: Path | None) -> ArrayImages:
    """CIFAR-10 from `data_root/cifar-10-batches-py`, else from `data_root/cifar-10-batches-bin`."""
    if data_root is None:
        raise DataError("cifar10 needs --data-root: the folder that holds cifar-10-batches-py")
    plain = data_root / "cifar-10-batches-bin"
    pickled = data_root / "cifar-10-batches-py"
    binary = plain.is_dir() and not pickled.is_dir()
    folder, suffix, read = (plain, ".bin", read_binary_batch) if binary else (pickled, "", read_pickled_batch)
    paths = [folder / f"{name}{suffix}" for name in BATCHES[split]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        packed = data_root / "cifar-10-python.tar.gz"
        hint = f"; unpack {packed}" if packed.is_file() else ""
        raise DataError(f"{folder}: missing {', '.join(missing)}{hint}")
    batches = [read(path) for path in paths]
    pixels = np.concatenate([pixels for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return ArrayImages(classes=CLASSES, labels=labels, pixels=pixels, source=f"cifar10 {split}")


def read_binary_batch(path: Path) -> tuple[UInt8, Labels]:
    """Pixels `[images, 32, 32, 3]` and labels `[images]` of records of one label byte and 3,072 pixel bytes."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None
    if len(data) == 0 or len(data) % (1 + PIXELS):
        raise DataError(f"{path}: not a whole number of records of {1 + PIXELS} bytes; get the file again")
    records = data.reshape(-1, 1 + PIXELS)
    return _unpack(path, records[:, 1:], records[:, 0].astype(np.int64))


def read_pickled_batch(path: Path) -> tuple[UInt8, Labels]:
    """Pixels `[images, 32, 32, 3]` and labels `[images]` of a batch of the Python version."""
    try:
        with path.open("rb") as file:
            # The official files come from Python 2: its strings are bytes here.
            batch = _BatchUnpickler(file, encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path}: cannot be read, truncated or damaged ({type(error).__name__})") from None
    values = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    pixels, labels = values.get("data"), values.get("labels")
    if not _is_uint8_rows(pixels) or not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: not a batch of CIFAR-10's Python version")
    return _unpack(path, pixels, np.array(labels, dtype=np.int64))


def _unpack(path: Path, rows: UInt8, labels: Labels) -> tuple[UInt8, Labels]:
    if len(rows) != len(labels):
        raise DataError(f"{path}: has {len(rows)} images but {len(labels)} labels; get the file again")
    check_labels(labels, len(CLASSES), path)
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _is_uint8_rows(value: Any) -> TypeGuard[UInt8]:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[1:] == (PIXELS,)


def _text(key: Any) -> Any:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _empty_array(*_: Any) -> UInt8:
    """What the unpickler then fills with shape, dtype and bytes."""
    return np.empty(0, dtype=np.uint8)


class _BatchUnpickler(pickle.Unpickler):
    """Knows what a pickled uint8 array needs; a pickle that names anything else is refused, unexecuted."""

    ALLOWED = frozenset(
        (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise DataError(f"the pickle asks for {module}.{name}, which no CIFAR-10 batch does: do not use this file")
        if name == "_reconstruct":
            return _empty_array  # numpy's own has moved between its versions
        return super().find_class(module, name)
