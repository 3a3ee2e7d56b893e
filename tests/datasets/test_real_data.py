"""The readers against the real files, where this machine has them."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from edvit.datasets import idx, read_split

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(("archive", "size", "train", "test"), [("cifar10", 32, 1000, 400), ("mnist", 28, 500, 100)])
def test_an_imagefolder_of_real_images(tmp_path, archive, size, train, test):
    path = SHARED / f"{archive}.zip"
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/{archive}.zip beside the repository")
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path)
    for split, count in (("train", train), ("test", test)):
        images = read_split(f"imagefolder:{tmp_path}", split)
        assert len(images.classes) == 10
        assert set(Counter(images.labels.tolist()).values()) == {count}
        assert images.image(len(images) // 2).size == (size, size)


def test_debians_fashion_mnist():
    if not idx.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    for split, count in (("train", 60_000), ("test", 10_000)):
        images = read_split("fashion-mnist", split)
        assert images.pixels.shape == (count, 28, 28)
        assert set(Counter(images.labels.tolist()).values()) == {count // 10}
