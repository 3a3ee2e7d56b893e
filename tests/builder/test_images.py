from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from digit_images import HOW, digit_images
from edvit.builder.images import ImageSet, open_images, split_validation, unreadable, write_images
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing, decode_image

labels_of_a_set = st.lists(st.integers(2, 40), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(labels_of_a_set, st.floats(0.01, 0.49))
def test_a_split_is_disjoint_complete_stratified_and_always_the_same(labels, fraction):
    labels = np.array(labels, dtype=np.int64)
    train, validation = split_validation(labels, np.arange(len(labels)), fraction)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in np.unique(labels):
        members = (labels == label).sum()
        held_out = (labels[validation] == label).sum()
        assert 1 <= held_out < members
        assert held_out == 1 or abs(held_out - fraction * members) <= 0.5
    again = split_validation(labels, np.arange(len(labels)), fraction)
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_images(tmp_path_factory.mktemp("digits"))


def test_images_are_what_serving_decodes(digits):
    source = read_split("digits", "train")
    assert len(digits) == len(source)
    assert np.array_equal(digits.labels, source.labels)
    for i in (0, 700, len(source) - 1):
        assert np.array_equal(digits.pixels()[i], decode_image(source.encoded(i), HOW))


def test_batches_and_parts_are_the_same_images(digits):
    part = digits.take(np.array([9, 3, 3, 100]))
    assert np.array_equal(part.labels, digits.labels[[9, 3, 3, 100]])
    assert np.array_equal(part.pixels(), digits.pixels(np.array([9, 3, 3, 100])))
    assert np.array_equal(np.concatenate(list(part.batches(3))), part.pixels())
    nested = part.take(np.array([3, 0]))
    assert np.array_equal(nested.pixels(), digits.pixels(np.array([100, 9])))
    own = digits.of_classes((2, 7))
    assert set(digits.labels[own]) == {2, 7}
    assert len(own) == np.isin(digits.labels, (2, 7)).sum()


def test_a_pickle_is_small_and_equal(digits):
    part = digits.take(np.arange(100))
    part.pixels()  # maps the pixels, which must not travel
    data = pickle.dumps(part)
    assert len(data) < 2000
    back = pickle.loads(data)
    assert isinstance(back, ImageSet)
    assert np.array_equal(back.pixels(), part.pixels())
    assert np.array_equal(back.labels, part.labels)


def test_pixels_stay_on_disk(digits):
    assert isinstance(digits._mapped, np.memmap)
    assert digits._mapped.mode == "r"


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_what_is_wrong_with_an_unreadable_image_is_noted(tmp_path, damage):
    how = Preprocessing(image_size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    for name in ("a", "b"):
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        Image.effect_noise((32, 32), 50).save(folder / "good.png")
    bad = tmp_path / "data" / "train" / "b" / "bad.png"
    whole = (tmp_path / "data" / "train" / "b" / "good.png").read_bytes()
    bad.write_bytes({"text": b"hello", "empty": b"", "cut": whole[:200]}[damage])
    (tmp_path / "made").mkdir()
    source = read_split(f"imagefolder:{tmp_path / 'data'}", "train")
    written = write_images(source, how, tmp_path / "made", lambda done, total: None)
    (message,) = written.bad
    assert unreadable(tmp_path / "made").tolist() == [1]
    assert str(bad) not in message, "the same data may lie elsewhere when the result is found again"
    assert "\n" not in message
    left = open_images(tmp_path / "made")
    assert (left.pixels().shape, left.labels.tolist()) == ((2, 3, 8, 8), [0, 1])
    bad.unlink()
    source = read_split(f"imagefolder:{tmp_path / 'data'}", "train")
    (tmp_path / "again").mkdir()
    assert write_images(source, how, tmp_path / "again", lambda done, total: None).bad == ()
    again = open_images(tmp_path / "again")
    assert np.array_equal(again.pixels(), left.pixels())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["labels.npy", "pixels.npy"]
