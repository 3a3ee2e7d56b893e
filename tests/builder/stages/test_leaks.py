from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from edvit.builder.stages.leaks import leaks
from edvit.errors import DataError
from edvit.inputs.datasets import read_split


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 4), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def found(root):
    train, test = (read_split(f"imagefolder:{root}", split) for split in ("train", "test"))
    return leaks(train, test, range(len(train)), range(len(test)))


def copy(root, name, to):
    shutil.copyfile(root / name, root / to)


def test_a_tidy_data_set_has_no_leak(root):
    assert found(root) == ()


def test_copies_within_a_class_of_one_split_are_no_leak(root):
    copy(root, "train/a/0.png", "train/a/1.png")
    copy(root, "test/a/0.png", "test/a/1.png")
    assert found(root) == ()


def test_test_images_in_the_training_data_are_counted_and_named(root):
    copy(root, "train/a/5.png", "test/a/2.png")
    copy(root, "train/b/0.png", "test/b/3.png")
    assert found(root) == (
        "test images that are training images as well, byte for byte: 2 of 8, such as test/a/2.png, which is "
        "train/a/5.png; the test accuracy means nothing for them",
    )


def test_a_test_split_of_training_images_is_refused(root):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        copy(root, f"train/{name}", f"test/{name}")
    with pytest.raises(DataError, match=r"as well, byte for byte: 4 of 8, such as .* give test images that are not in"):
        found(root)


def test_validation_images_of_the_authors_are_compared_as_well(root):
    copy(root, "train/a/0.png", "val/a/0.png")
    copy(root, "val/b/1.png", "test/b/2.png")
    first, second = found(root)
    assert first.startswith(
        "validation images that are training images as well, byte for byte: 1 of 8, such as val/a/0"
    )
    assert second.startswith("test images that are validation images as well, byte for byte: 1 of 8, such as test/b/2")


def test_one_image_under_two_labels_is_told_in_one_line(root):
    copy(root, "train/a/0.png", "train/b/0.png")
    copy(root, "train/a/1.png", "train/b/1.png")
    copy(root, "train/a/2.png", "train/b/2.png")
    assert found(root) == (
        "images that lie under more than one label, byte for byte: 3, such as train/a/0.png and train/b/0.png; "
        "train/a/1.png and train/b/1.png; at most one label of each is right",
    )


def test_a_test_image_under_another_label_than_in_training_is_told(root):
    copy(root, "train/a/0.png", "test/b/0.png")
    leak, label = found(root)
    assert "1 of 8, such as test/b/0.png, which is train/a/0.png" in leak
    assert "byte for byte: 1, such as train/a/0.png and test/b/0.png" in label


def test_what_cannot_be_read_is_no_copy(root):
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
        (root / name).write_bytes(b"<html>not found</html>")
    train, test = (read_split(f"imagefolder:{root}", split) for split in ("train", "test"))
    rows = [[row for row in range(len(part)) if not part.key(row).endswith("0.png")] for part in (train, test)]
    assert leaks(train, test, *rows) == ()
