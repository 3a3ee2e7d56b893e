from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_images import digit_images
from edvit.builder.images import LABELS, PIXELS, open_images
from edvit.builder.train.augment import GLYPHS, NATURAL, UNLABELLED, Augmentation, Views, _share_of_other

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
which = st.tuples(st.integers(0, 3), st.sampled_from([0, 0.5, 1]))
augmentations = st.builds(
    Augmentation,
    flip=st.booleans(),
    shift=st.floats(0, 0.5),
    scale=st.floats(0, 0.5),
    rotate=st.floats(0, 90),
    colour=st.floats(0, 1),
)


@settings(max_examples=30, deadline=None)
@given(how=augmentations, index=indices, cut=st.integers(1, 39), which=which)
def test_a_view_is_the_same_whatever_batches_it_is_made_in(noise, how, index, cut, which):
    (view, mix), index = which, np.array(index)
    views = Views(noise, how, seed=5, mix=mix)
    together = views.batch(view, index)
    parts = [views.batch(view, part) for part in (index[:cut], index[cut:]) if len(part)]
    assert torch.allclose(together, torch.cat(parts), atol=1e-3, rtol=0)
    again = Views(noise, how, seed=5, mix=mix).batch(view, index)
    assert torch.equal(together, again)


@settings(max_examples=30, deadline=None)
@given(how=augmentations, view=st.integers(0, 3), mix=st.sampled_from([0, 1]))
def test_values_stay_within_an_images_range(noise, how, view, mix):
    made = Views(noise, how, seed=1, mix=mix).batch(view, np.arange(40))
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


@given(how=augmentations, strength=st.floats(0, 10))
def test_a_stronger_augmentation_has_wider_ranges_that_still_make_sense(how, strength):
    stronger = how.times(strength)
    assert how.times(1.0) == how
    assert stronger.flip == how.flip
    for name in ("shift", "rotate"):
        assert getattr(stronger, name) == getattr(how, name) * strength
    for name, most in (("scale", 0.9), ("colour", 1.0)):
        assert getattr(stronger, name) == min(getattr(how, name) * strength, max(most, getattr(how, name)))


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


# --- mixed images --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Images of one grey each, which is their number, and their label as well."""
    folder = tmp_path_factory.mktemp("flat")
    grey = np.arange(200, dtype=np.uint8)
    np.save(folder / PIXELS, np.broadcast_to(grey[:, None, None, None], (200, 1, 16, 16)))
    np.save(folder / LABELS, grey.astype(np.int64))
    return open_images(folder)


def test_a_mixed_image_has_no_label_and_the_others_are_as_they_were(flat):
    views = Views(flat, Augmentation(), seed=2, mix=0.5)
    labels, made = views.labels(1), views.batch(1, np.arange(200))
    mixed = labels == UNLABELLED
    assert 60 <= mixed.sum() <= 140
    assert np.array_equal(labels[~mixed], flat.labels[~mixed])
    plain = torch.from_numpy(flat.pixels()).float()
    assert torch.equal(made[~mixed], plain[~mixed])
    changed = (made != plain).flatten(1).any(dim=1).numpy()
    assert not changed[~mixed].any()
    assert changed[mixed].mean() > 0.9  # all but those whose rectangle is smaller than a pixel
    assert not np.array_equal(labels, views.labels(2))


def test_half_are_averages_of_two_images_and_half_have_a_rectangle_of_another(flat):
    views = Views(flat, Augmentation(), seed=0, mix=1.0)
    made, greys = views.batch(0, np.arange(200))[:, 0], np.arange(200)
    assert (views.labels(0) == UNLABELLED).all()
    averages, shares = 0, []
    for image, grey in zip(made, greys, strict=True):
        values = image.unique()
        if len(values) == 1:
            averages += 1
            continue
        assert len(values) == 2 and grey in values, "the image itself and one other"
        there = image != grey
        rows, columns = there.any(dim=1), there.any(dim=0)
        assert torch.equal(there, rows[:, None] & columns), "a rectangle"
        assert (rows.int().diff().abs().sum() <= 2) and (columns.int().diff().abs().sum() <= 2), "in one piece"
        shares.append(there.float().mean().item())
    assert 70 <= averages <= 130
    assert 0.25 < np.mean(shares) < 0.5  # half on average, less what hangs over the edge


def test_without_mixing_labels_are_those_of_the_images(flat):
    assert np.array_equal(Views(flat, NATURAL, seed=0).labels(3), flat.labels)


# --- images that are not square ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    """Images of 32 x 80 pixels with a soft disc in their middle, which no rotation changes."""
    folder = tmp_path_factory.mktemp("disc")
    down, across = np.mgrid[:32, :80]
    grey = 200 * np.exp(-((down - 15.5) ** 2 + (across - 39.5) ** 2) / 2 / 5**2)
    np.save(folder / PIXELS, np.broadcast_to(grey.astype(np.uint8), (40, 1, 32, 80)))
    np.save(folder / LABELS, np.arange(40, dtype=np.int64))
    return open_images(folder)


def test_a_turned_disc_is_a_disc(disc):
    turned = Views(disc, Augmentation(rotate=60), seed=0).batch(0, np.arange(40))
    plain = torch.from_numpy(disc.pixels()).float()
    inner = (..., slice(4, 28), slice(28, 52))  # what is turned in from above and below is a reflection
    assert (turned - plain)[inner].abs().max() < 10


def test_mixed_images_keep_their_shape_and_rectangles_theirs(disc):
    made = Views(disc, Augmentation(), seed=0, mix=1.0).batch(0, np.arange(40))
    assert made.shape == (40, 1, 32, 80)
    draws = torch.tensor([[0.0, 0.25, 0.5, 0.5]])
    share = _share_of_other(draws, 32, 80)[0, 0]
    assert share[8:24, 20:60].eq(1).all() and share.sum() == 16 * 40, "half of each side"
