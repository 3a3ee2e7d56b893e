from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_images import digit_images
from edvit.builder.augment import GLYPHS, NATURAL, Augmentation, Views
from edvit.builder.images import LABELS, PIXELS, open_images

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_images(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Colour images of full-range noise, the hardest for an interpolation to keep within 0 to 255."""
    folder = tmp_path_factory.mktemp("noise")
    np.save(folder / PIXELS, np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8))
    np.save(folder / LABELS, np.zeros(40, dtype=np.int64))
    return open_images(folder)


indices = st.lists(st.integers(0, 39), min_size=1, max_size=40, unique=True)
augmentations = st.builds(
    Augmentation,
    flip=st.booleans(),
    shift=st.floats(0, 0.5),
    scale=st.floats(0, 0.5),
    rotate=st.floats(0, 90),
    colour=st.floats(0, 1),
)


@settings(max_examples=30, deadline=None)
@given(how=augmentations, index=indices, cut=st.integers(1, 39), view=st.integers(0, 3))
def test_a_view_is_the_same_whatever_batches_it_is_made_in(noise, how, index, cut, view):
    views, index = Views(noise, how, seed=5), np.array(index)
    together = views.batch(view, index)
    parts = [views.batch(view, part) for part in (index[:cut], index[cut:]) if len(part)]
    assert torch.allclose(together, torch.cat(parts), atol=1e-3, rtol=0)
    again = Views(noise, how, seed=5).batch(view, index)
    assert torch.equal(together, again)


@settings(max_examples=30, deadline=None)
@given(how=augmentations, view=st.integers(0, 3))
def test_values_stay_within_an_images_range(noise, how, view):
    made = Views(noise, how, seed=1).batch(view, np.arange(40))
    assert made.shape == (40, 3, 16, 16)
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 255


def test_no_augmentation_changes_nothing(digits):
    index = np.array([3, 1, 2])
    assert Augmentation().is_identity
    assert torch.equal(Views(digits, Augmentation(), 0).batch(7, index), torch.from_numpy(digits.pixels(index)).float())


def test_ranges_of_almost_zero_change_almost_nothing(noise):
    how = Augmentation(shift=1e-7, scale=1e-7, rotate=1e-7, colour=1e-7)
    plain = torch.from_numpy(noise.pixels()).float()
    assert (Views(noise, how, 0).batch(0, np.arange(40)) - plain).abs().max() < 0.05


def test_views_and_seeds_differ(digits):
    index = np.arange(20)
    made = [Views(digits, GLYPHS, seed).batch(view, index) for seed in (0, 1) for view in (0, 1)]
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            assert (one - other).abs().mean() > 1


def test_only_a_flip_mirrors_and_it_mirrors_half(noise):
    plain = torch.from_numpy(noise.pixels()).float()
    flipped = Views(noise, Augmentation(flip=True), 0).batch(0, np.arange(40))
    same = [torch.allclose(a, b, atol=0.1) for a, b in zip(flipped, plain, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=0.1) for a, b in zip(flipped, plain, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_digits_are_never_mirrored():
    assert NATURAL.flip
    assert not GLYPHS.flip


def test_a_shift_moves_the_image_by_that_much(noise):
    """All of a draw of +-1 at half the image is half the image: content moves, by no more than asked."""
    how = Augmentation(shift=0.25)
    views = Views(noise, how, 3)
    plain = torch.from_numpy(noise.pixels()).float()
    moved = views.batch(0, np.arange(40))
    draws = views._draws(0)
    for image, source, (_, dx, dy, *_) in zip(moved, plain, draws, strict=True):
        x, y = round(float(dx) * 0.25 * 16), round(float(dy) * 0.25 * 16)
        inner = slice(5, 11)
        near = [
            (image[:, inner, inner] - source[:, 5 + b : 11 + b, 5 + a : 11 + a]).abs().mean()
            for a in range(-5, 6)
            for b in range(-5, 6)
        ]
        at = (image[:, inner, inner] - source[:, 5 + y : 11 + y, 5 + x : 11 + x]).abs().mean()
        assert at == min(near)
