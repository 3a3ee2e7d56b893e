"""CIFAR-10, MNIST and Fashion-MNIST: what is read of them, from every form they come in."""

import hashlib

import numpy as np
import pytest

from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing
from named_sets import COLOUR, GREY, LABELS, write_cifar, write_idx

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


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["raw", "."])
@pytest.mark.parametrize(("spec", "name", "digests"), [
    ("mnist", "MNIST", ("84ccd17989e17491", "59d1b53016b42afe")),
    ("fashion-mnist", "FashionMNIST", ("7ceaa6fc882530bf", "5260709a284acaaa")),
])  # fmt: skip
def test_mnist_and_fashion_mnist_are_what_they_always_were(tmp_path, spec, name, digests, layout, packed):
    folder = tmp_path / name / "raw" if layout == "raw" else tmp_path
    write_idx(folder, "train", GREY[:4], [0, 9, 3, 1], packed)
    write_idx(folder, "t10k", GREY[4:], [7, 2], packed)
    train, test = (read_split(spec, split, tmp_path) for split in SPLITS)
    assert [np.asarray(train.image(i)).tolist() for i in range(4)] == GREY[:4].tolist()
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 9, 3, 1], [7, 2])
    assert (digest(train), digest(test)) == digests
