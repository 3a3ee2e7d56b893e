"""Small fakes of the named data sets, in the forms in which their authors publish them."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
from torchvision.datasets import CIFAR10

TRAIN = tuple(name for name, _ in CIFAR10.train_list)
TEST = tuple(name for name, _ in CIFAR10.test_list)
COLOUR = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
"""Two a batch: 0..9 for training, 10 and 11 for testing."""
LABELS = [0, 9, 3, 1, 4, 4, 2, 8, 7, 6, 5, 0]
GREY = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)


def rows(images):
    """`[images, 3072]`: red, green and blue planes one after the other, as CIFAR stores them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_cifar(root, monkeypatch, form="pickled"):
    """CIFAR-10's ten training and two test images; torchvision is told of the checksums of the pickled form."""
    folder = root / ("cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    sums = {}
    for i, name in enumerate((*TRAIN, *TEST)):
        data, labels = rows(COLOUR[2 * i : 2 * i + 2]), LABELS[2 * i : 2 * i + 2]
        if form == "binary":
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            sums[name] = put(folder / name, {"data": data, "labels": labels})
    if form == "pickled":
        sums["batches.meta"] = put(folder / "batches.meta", {"label_names": list("abcdefghij")})
        trust(monkeypatch, sums)
    return folder


def put(path, value):
    """Pickles a value; the MD5 of the file."""
    path.write_bytes(pickle.dumps(value, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def trust(monkeypatch, sums):
    """Tells torchvision's CIFAR10 what the MD5 of its files is."""
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name in TEST])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})


def to_idx(array):
    """An IDX file of unsigned bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, prefix, images, labels, packed=False):
    """The two files of a split of MNIST or Fashion-MNIST; `prefix` is `train` or `t10k`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = to_idx(np.asarray(array, dtype=np.uint8))
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
