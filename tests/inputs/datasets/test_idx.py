import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import DataError
from edvit.inputs.datasets import idx, read_split

LAYOUTS = [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", "."), ("fashion-mnist", ".")]


def to_idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_split(folder, prefix, images, labels, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = to_idx(np.asarray(array, dtype=np.uint8))
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("spec", "layout"), LAYOUTS)
def test_reads_each_layout(tmp_path, images, spec, layout, packed):
    write_split(tmp_path / layout, "train", images[:4], [0, 9, 3, 1], packed)
    write_split(tmp_path / layout, "t10k", images[4:], [7, 2], packed)
    train, test = read_split(spec, "train", tmp_path), read_split(spec, "test", tmp_path)
    assert np.array_equal(train.pixels, images[:4])
    assert np.array_equal(test.pixels, images[4:])
    assert train.labels.tolist() == [0, 9, 3, 1]
    assert test.labels.tolist() == [7, 2]
    assert len(train.classes) == 10


def test_missing_files_are_named(tmp_path, images):
    write_split(tmp_path / "MNIST/raw", "train", images, range(6))
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"MNIST/raw: missing train-labels-idx1-ubyte \(plain or \.gz\)"):
        read_split("mnist", "train", tmp_path)
    with pytest.raises(DataError, match="missing t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"):
        read_split("mnist", "test", tmp_path)


def test_mnist_needs_a_data_root():
    with pytest.raises(DataError, match="mnist needs --data-root"):
        read_split("mnist", "train")


def test_fashion_mnist_defaults_to_debians_package(tmp_path, images, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path)
    write_split(tmp_path, "t10k", images, range(6), packed=True)
    assert read_split("fashion-mnist", "test").labels.tolist() == list(range(6))
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        read_split("fashion-mnist", "test")


@pytest.mark.parametrize("cut", [0, 3, 10, 16, 500, -1])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_truncated_file_is_named(tmp_path, images, cut, packed):
    write_split(tmp_path, "train", images, range(6), packed)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        read_split("mnist", "train", tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any-idx3-ubyte"
    path.write_bytes(data)
    try:
        array = idx.read_idx(path, dimensions=1)
    except DataError:
        return
    assert to_idx(array) == data


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="claims to hold"):
        idx.read_idx(path, dimensions=3)


def test_trailing_bytes_are_refused(tmp_path, images):
    write_split(tmp_path, "train", images, range(6))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="holds more than"):
        read_split("mnist", "train", tmp_path)


def test_counts_and_labels_must_agree(tmp_path, images):
    write_split(tmp_path, "train", images, range(5))
    with pytest.raises(DataError, match=r"has 6 images, but .* has 5 labels"):
        read_split("mnist", "train", tmp_path)
    write_split(tmp_path, "train", images, [0, 1, 2, 3, 4, 10])
    with pytest.raises(DataError, match=r"labels outside 0\.\.9"):
        read_split("mnist", "train", tmp_path)


def test_a_split_without_images_is_refused(tmp_path, images):
    write_split(tmp_path, "train", images[:0], [])
    with pytest.raises(DataError, match="the train split holds nothing"):
        read_split("mnist", "train", tmp_path)
