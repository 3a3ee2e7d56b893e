from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from edvit.errors import DataError
from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.images import FileSounds
from edvit.inputs.datasets.unlabelled import read_unlabelled
from sounds import encoded, tone


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def known(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            picture(tmp_path / "data" / split / label / "0.png", hash((split, label)) % 1000)
    spec = f"imagefolder:{tmp_path / 'data'}"
    return [read_split(spec, "train"), read_split(spec, "test")]


def test_images_at_any_depth_without_clutter(known, tmp_path):
    root = tmp_path / "frames"
    for number, name in enumerate(("1.png", "day/2.PNG", "day/night/3.jpg", "._1.png", ".thumbs/4.png")):
        picture(root / name, 2000 + number)
    (root / "notes.txt").write_text("x")
    found = read_unlabelled(root, known, sounds=False)
    assert [path.name for path in found.paths] == ["1.png", "2.PNG", "3.jpg"]
    assert found.notes == ("3 without labels", "1 of 4 files of frames skipped: 1 .txt")


def test_test_images_and_training_images_are_left_out(known, tmp_path):
    root = tmp_path / "frames"
    picture(root / "new.png", 5000)
    shutil.copy(known[1].paths[0], root / "copied.png")
    shutil.copy(known[0].paths[1], root / "training.png")
    found = read_unlabelled(root, known, sounds=False)
    assert [path.name for path in found.paths] == ["new.png"]
    assert "2 images of frames left out, which the data set has as well" in found.notes
    (root / "new.png").unlink()
    with pytest.raises(DataError, match="every image in it is one of the labelled data set"):
        read_unlabelled(root, known, sounds=False)


def test_sounds(tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    (root / "a.wav").write_bytes(encoded(tone(440)))
    picture(root / "a.png", 0)
    found = read_unlabelled(root, [], sounds=True)
    assert isinstance(found, FileSounds)
    assert [path.name for path in found.paths] == ["a.wav"]


@pytest.mark.parametrize(
    ("make", "message"), [("nothing", "no such folder"), ("file", "is a file"), ("empty", "holds no")]
)
def test_no_such_folder(make, message, tmp_path):
    root = tmp_path / "x"
    if make == "file":
        root.write_text("x")
    elif make == "empty":
        root.mkdir()
    with pytest.raises(DataError, match=message):
        read_unlabelled(root, [], sounds=False)
