import os
import pickle

import numpy as np
import pytest

from edvit.errors import DataError
from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.cifar import BATCHES, read_pickled_batch

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = [0, 9, 3, 1, 4, 4, 2, 8, 7, 6, 5, 0]
NAMES = (*BATCHES["train"], *BATCHES["test"])


def rows(images):
    """`[images, 3072]`: red, green and blue planes one after the other, as CIFAR stores them."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def python2_pickle(data, labels):
    """What Python 2's cPickle wrote, protocol 2: every string as bytes (8-bit `str`), numpy's old module path."""
    import struct

    def text(value):
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + b"K" + bytes([data.shape[0]]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + b"T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def python3_pickle(data, labels):
    return pickle.dumps({"data": data, "labels": labels})


def write(root, form):
    """Two images per batch: training batches 0..9, test batch 10..11."""
    folder = root / ("cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        data, labels = rows(IMAGES[2 * i : 2 * i + 2]), LABELS[2 * i : 2 * i + 2]
        if form == "binary":
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            encode = python2_pickle if form == "python2" else python3_pickle
            (folder / name).write_bytes(encode(data, labels))
    return folder


@pytest.mark.parametrize("form", ["python2", "python3", "binary"])
def test_reads_each_official_form(tmp_path, form):
    write(tmp_path, form)
    train, test = read_split("cifar10", "train", tmp_path), read_split("cifar10", "test", tmp_path)
    assert np.array_equal(train.pixels, IMAGES[:10])
    assert np.array_equal(test.pixels, IMAGES[10:])
    assert train.labels.tolist() == LABELS[:10]
    assert test.labels.tolist() == LABELS[10:]
    assert train.classes[3] == "cat"
    assert train.image(0).mode == "RGB"


def test_the_hand_made_pickle_reads_as_torchvision_reads_the_real_one(tmp_path):
    """Guards the fixture: the unrestricted unpickler agrees on what is in it."""
    folder = write(tmp_path, "python2")
    with (folder / "test_batch").open("rb") as file:
        entry = pickle.load(file, encoding="latin1")  # torchvision.datasets.CIFAR10's very call
    assert np.array_equal(entry["data"], rows(IMAGES[10:]))
    assert entry["labels"] == LABELS[10:]


@pytest.mark.parametrize("form", ["python3", "binary"])
def test_missing_batches_are_named(tmp_path, form):
    folder = write(tmp_path, form)
    suffix = ".bin" if form == "binary" else ""
    (folder / f"data_batch_2{suffix}").unlink()
    (folder / f"data_batch_5{suffix}").unlink()
    with pytest.raises(DataError, match=f"missing data_batch_2{suffix}, data_batch_5{suffix}"):
        read_split("cifar10", "train", tmp_path)
    assert len(read_split("cifar10", "test", tmp_path)) == 2


def test_an_archive_still_packed_is_mentioned(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"missing test_batch; unpack .*cifar-10-python\.tar\.gz"):
        read_split("cifar10", "test", tmp_path)


def test_needs_a_data_root():
    with pytest.raises(DataError, match="cifar10 needs --data-root"):
        read_split("cifar10", "train")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    target = tmp_path / "owned"
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": Attack(target), "labels": []}))
    with pytest.raises(DataError, match=r"asks for posix\.mkdir"):
        read_pickled_batch(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        python3_pickle(rows(IMAGES[:2]), [1, 2])[:-40],
        python3_pickle(rows(IMAGES[:2]), [1]),
        python3_pickle(rows(IMAGES[:2]), [1, 10]),
        python3_pickle(rows(IMAGES[:2]), [1, "2"]),
        python3_pickle(rows(IMAGES[:2]).astype(np.float32), [1, 2]),
        python3_pickle(np.zeros((2, 5), dtype=np.uint8), [1, 2]),
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [1]}),
    ],
    ids=["empty", "text", "truncated", "fewer-labels", "label-10", "text-label", "float", "shape", "list", "no-data"],
)
def test_a_damaged_batch_is_named(tmp_path, content):
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        read_pickled_batch(path)


def test_a_damaged_binary_batch_is_named(tmp_path):
    folder = write(tmp_path, "binary")
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin: not a whole number of records"):
        read_split("cifar10", "test", tmp_path)
