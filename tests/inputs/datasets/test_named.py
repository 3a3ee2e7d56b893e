"""CIFAR-10, MNIST and Fashion-MNIST: what is read of them, from every form they come in."""

import hashlib
import pickle
import sys

import numpy as np
import pytest

from edvit.errors import DataError, MissingExtraError
from edvit.inputs.datasets import named, read_split
from edvit.inputs.preprocess import Preprocessing
from named_sets import COLOUR, GREY, LABELS, TEST, TRAIN, write_cifar, write_idx

SPLITS = ("train", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def digest(images):
    """SHA-256 of the classes, the labels, the pixels and the model's inputs, in their order."""
    channels = 1 if images.image(0).mode == "L" else 3
    how = Preprocessing(image_size=40, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    found = hashlib.sha256(repr((images.classes, images.labels.tolist())).encode())
    for index in range(len(images)):
        found.update(np.asarray(images.image(index)).tobytes())
        found.update(images.prepared(index, how).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("form", ["pickled", "binary"])
def test_cifar10_is_what_it_always_was(tmp_path, monkeypatch, form):
    write_cifar(tmp_path, monkeypatch, form)
    train, test = (read_split("cifar10", split, tmp_path) for split in SPLITS)
    assert [np.asarray(train.image(i)).tolist() for i in range(10)] == COLOUR[:10].tolist()
    assert [np.asarray(test.image(i)).tolist() for i in range(2)] == COLOUR[10:].tolist()
    assert (train.labels.tolist(), test.labels.tolist()) == (LABELS[:10], LABELS[10:])
    assert (train.classes[3], train.image(0).mode) == ("cat", "RGB")
    assert (digest(train), digest(test)) == ("2b1ee07b3a3741eb", "3df5be45397c4457")


FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
DIGESTS = {
    "mnist": ("84ccd17989e17491", "59d1b53016b42afe"),
    "fashion-mnist": ("7ceaa6fc882530bf", "5260709a284acaaa"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["raw", "."])
@pytest.mark.parametrize("spec", FOLDERS)
def test_mnist_and_fashion_mnist_are_what_they_always_were(tmp_path, spec, layout, packed):
    folder = tmp_path / FOLDERS[spec] if layout == "raw" else tmp_path
    write_idx(folder, "train", GREY[:4], [0, 9, 3, 1], packed)
    write_idx(folder, "t10k", GREY[4:], [7, 2], packed)
    train, test = (read_split(spec, split, tmp_path) for split in SPLITS)
    assert [np.asarray(train.image(i)).tolist() for i in range(4)] == GREY[:4].tolist()
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 9, 3, 1], [7, 2])
    assert (digest(train), digest(test)) == DIGESTS[spec]


def test_the_folder_is_made_once_and_then_read_without_the_files_and_without_torchvision(tmp_path, monkeypatch):
    write_idx(tmp_path / "FashionMNIST/raw", "train", GREY, range(6), packed=True)
    made = tmp_path / "fashion-mnist-images"
    first = read_split("fashion-mnist", "train", tmp_path)
    assert first.notes == (f"made {made}: the images of fashion-mnist, read from there from now on",)
    assert sorted(path.name for path in made.iterdir()) == ["class_order.txt", "train"]
    for path in (tmp_path / "FashionMNIST/raw").iterdir():
        path.unlink()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    again = read_split("fashion-mnist", "train", tmp_path)
    assert (digest(again), again.notes) == (digest(first), ())
    # As any other folder it has the same classes; its images lie class by class.
    folder = read_split(f"imagefolder:{made}", "train")
    assert folder.classes == again.classes
    assert folder.classes[0] == "T-shirt/top"
    assert sorted(zip(folder.paths, folder.labels, strict=True)) == sorted(zip(again.paths, again.labels, strict=True))


def test_without_torchvision_it_says_what_to_do(tmp_path, monkeypatch):
    write_idx(tmp_path, "t10k", GREY, range(6))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for spec in ("mnist", "cifar10"):
        with pytest.raises(MissingExtraError, match=r"pip install 'edvit\[build\]', or copy .* give imagefolder:DIR"):
            read_split(spec, "test", tmp_path)


def test_a_data_root_that_cannot_be_written_to_leaves_the_folder_in_the_cache(tmp_path, cache):
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        write_idx(root, "t10k", GREY, range(6))
        (root / "mnist-images").touch()  # where the folder would be
        assert cache in read_split("mnist", "test", root).paths[0].parents
        assert read_split("mnist", "test", root).notes == ()
    assert len(list((cache / "edvit" / "datasets").iterdir())) == 2, "two roots may hold different copies"


def test_no_room_anywhere_is_one_line(tmp_path, cache):
    write_idx(tmp_path, "t10k", GREY, range(6))
    (tmp_path / "mnist-images").touch()
    (cache / "edvit").touch()
    with pytest.raises(DataError, match=r"the images of mnist test cannot be written \(.*mnist-images: File exists; "):
        read_split("mnist", "test", tmp_path)


def test_a_folder_that_was_not_finished_is_not_there(tmp_path, monkeypatch):
    write_idx(tmp_path, "t10k", GREY, range(6))

    def fail(self, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(named.ArrayImages, "encoded", fail)
        read_split("mnist", "test", tmp_path)
    assert list((tmp_path / "mnist-images").iterdir()) == []
    assert len(read_split("mnist", "test", tmp_path)) == 6


def test_a_folder_that_was_changed_is_told(tmp_path):
    write_idx(tmp_path, "t10k", GREY, range(6))
    path = read_split("mnist", "test", tmp_path).paths[2]
    path.rename(path.with_name("other.png"))
    with pytest.raises(DataError, match=r"mnist-images/test: .*remove the folder, and it is made again"):
        read_split("mnist", "test", tmp_path)


@pytest.mark.parametrize("spec", ["cifar10", *FOLDERS])
def test_each_needs_a_data_root(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(DataError, match=f"{spec} needs --data-root: the folder that holds"):
        read_split(spec, "train")


def test_fashion_mnist_defaults_to_debians_package(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", tmp_path)
    write_idx(tmp_path, "t10k", GREY, range(6), packed=True)
    images = read_split("fashion-mnist", "test")
    assert images.labels.tolist() == list(range(6))
    assert cache in images.paths[0].parents
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        read_split("fashion-mnist", "test")


def test_missing_files_are_named(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST/raw", "train", GREY, range(6))
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"MNIST/raw: missing train-labels-idx1-ubyte \(plain or \.gz\)"):
        read_split("mnist", "train", tmp_path)
    with pytest.raises(DataError, match="missing t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"):
        read_split("mnist", "test", tmp_path)
    folder = write_cifar(tmp_path, monkeypatch)
    for i in (2, 5):
        (folder / f"data_batch_{i}").unlink()
    with pytest.raises(DataError, match=r"missing data_batch_2, data_batch_5$"):
        read_split("cifar10", "train", tmp_path)


def test_missing_binary_batches_are_named_and_the_other_split_is_read(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, monkeypatch, "binary")
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"missing data_batch_2\.bin"):
        read_split("cifar10", "train", tmp_path)
    assert len(read_split("cifar10", "test", tmp_path)) == 2


def test_an_archive_still_packed_is_mentioned(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"missing data_batch_1, .*; unpack .*cifar-10-python\.tar\.gz"):
        read_split("cifar10", "test", tmp_path)


class Attack:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [TRAIN[0], *TEST, "batches.meta"])
def test_a_pickle_that_is_not_the_official_one_is_refused_and_not_loaded(tmp_path, monkeypatch, name):
    folder = write_cifar(tmp_path, monkeypatch)
    (folder / name).write_bytes(pickle.dumps({"data": Attack(tmp_path / "owned"), "labels": []}))
    for split in SPLITS:
        with pytest.raises(DataError, match=r"files of cifar10 are truncated, damaged or not the official ones"):
            read_split("cifar10", split, tmp_path)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "cifar10-images").exists()


def test_a_damaged_binary_batch_is_told(tmp_path, monkeypatch):
    path = write_cifar(tmp_path, monkeypatch, "binary") / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"the test files of cifar10 are truncated"):
        read_split("cifar10", "test", tmp_path)


@pytest.mark.parametrize("length", [0, 3, 10, 16, 500, -1, None])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_damaged_idx_file_is_told(tmp_path, packed, length):
    """Cut to a length, or with bytes too many."""
    write_idx(tmp_path, "train", GREY, range(6), packed)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes() + b"more" if length is None else path.read_bytes()[:length])
    with pytest.raises(DataError, match="the train files of mnist are truncated"):
        read_split("mnist", "train", tmp_path)


def test_counts_and_labels_must_agree(tmp_path):
    write_idx(tmp_path, "train", GREY, range(5))
    with pytest.raises(DataError, match=r"mnist has 6 train images and 5 labels"):
        read_split("mnist", "train", tmp_path)
    write_idx(tmp_path, "train", GREY, [0, 1, 2, 3, 4, 10])
    with pytest.raises(DataError, match=r"train labels outside 0\.\.9"):
        read_split("mnist", "train", tmp_path)


def test_a_split_without_images_is_refused(tmp_path):
    write_idx(tmp_path, "train", GREY[:0], [])
    with pytest.raises(DataError, match="mnist"):
        read_split("mnist", "train", tmp_path)
