from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from digit_images import train_and_validation
from edvit.builder.train.augment import GLYPHS, UNLABELLED, Views
from edvit.builder.unlabelled import WithUnlabelled

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    known, others = train_and_validation(tmp_path_factory.mktemp("digits"), 60)
    return WithUnlabelled(known, others)


def test_labelled_images_come_first_and_the_others_have_no_label(both):
    n = len(both.labelled)
    assert len(both) == n + len(both.unlabelled)
    assert np.array_equal(both.labels[:n], both.labelled.labels)
    assert set(both.labels[n:]) == {UNLABELLED}


@pytest.mark.parametrize("index", [slice(None), slice(5, 60, 7), np.array([59, 0, 3, 58, 3]), np.array([], dtype=int)])
def test_pixels_are_those_of_the_one_or_the_other(both, index):
    everything = np.concatenate([both.labelled.pixels(), both.unlabelled.pixels()])
    assert np.array_equal(both.pixels(index), everything[index])


def test_views_of_both(both):
    views = Views(both, GLYPHS, seed=0, mix=0.5)
    labels = views.labels(1)
    assert set(labels[len(both.labelled) :]) == {UNLABELLED}
    known = labels[: len(both.labelled)]
    assert 0 < np.mean(known == UNLABELLED) < 1, "some of the labelled images are mixed"
    index = np.array([0, len(both) - 1])
    again = pickle.loads(pickle.dumps(views))
    assert torch.equal(views.batch(1, index), again.batch(1, index))


def test_the_labelled_images_are_changed_as_without_the_others(both):
    """In their own draws, so that a build with more images can be compared."""
    alone = Views(both.labelled, GLYPHS, seed=0)
    index = np.arange(5)
    assert torch.equal(Views(both, GLYPHS, seed=0).batch(0, index), alone.batch(0, index))
    assert replace(alone, seed=1) != alone
