"""The readers against the real files, where this machine has them."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import named, read_split
from edvit.inputs.preprocess import Preprocessing

SHARED = Path(__file__).parents[4] / "shared" / "data"


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


def test_an_audiofolder_of_real_sounds(tmp_path):
    path = SHARED / "speech-commands-12.zip"
    if not path.is_file():
        pytest.skip("needs ../shared/data/speech-commands-12.zip beside the repository")
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path, [name for name in packed.namelist() if name.startswith("test/")])
    sounds = read_split(f"audiofolder:{tmp_path}", "test")
    assert set(Counter(sounds.labels.tolist()).values()) == {50}
    assert len(sounds.classes) == 12
    assert sounds.typical() == (1.0, 16_000)
    how = Preprocessing(image_size=32, channels=1, mean=(0.5,), std=(0.5,), spectrogram=Spectrogram())
    means = [sounds.prepared(i, how).mean() for i in range(0, len(sounds), 10)]
    assert 20 < min(means) < max(means) < 230, "neither black nor white"


def test_debians_fashion_mnist(tmp_path, monkeypatch):
    if not named.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for split, count in (("train", 60_000), ("test", 10_000)):
        images = read_split("fashion-mnist", split)
        assert images.image(0).size == (28, 28)
        assert len(images) == count
        assert set(Counter(images.labels.tolist()).values()) == {count // 10}
