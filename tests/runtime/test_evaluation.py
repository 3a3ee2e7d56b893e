import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import DataError, ImageError, UnavailableError
from edvit.inputs.datasets.images import ArrayImages
from edvit.inputs.preprocess import Preprocessing, decode_image
from edvit.runtime.evaluation import Classified, choose, evaluate, per_class

HOW = Preprocessing(image_size=2, channels=1, mean=(0.0,), std=(1.0,))


def images(labels, classes=("a", "b", "c")):
    """Image i is a 2 x 2 square of grey i."""
    pixels = np.repeat(np.arange(len(labels), dtype=np.uint8), 4).reshape(-1, 2, 2)
    return ArrayImages(classes=classes, labels=np.array(labels, dtype=np.int64), pixels=pixels, source="made")


def grey(data):
    return int(decode_image(data, HOW)[0, 0, 0])


def test_counts_per_class_and_in_all():
    predicted = [0, 0, 2, 2, 1]
    result = evaluate(images([0, 1, 2, 2, 2]), lambda data: Classified(predicted[grey(data)], degraded=grey(data) == 3))
    assert result.predicted.tolist() == predicted
    assert [(c.name, c.correct, c.images) for c in result.classes] == [("a", 1, 1), ("b", 0, 1), ("c", 2, 3)]
    assert (result.accuracy, result.images, result.degraded) == (3 / 5, 5, 1)
    assert result.latency_s.shape == (5,)
    assert 0 <= result.latency_at(50) <= result.latency_at(95)


def test_classes_without_images_are_left_out():
    result = evaluate(images([2, 2]), lambda data: Classified(2))
    assert [(c.name, c.accuracy) for c in result.classes] == [("c", 1.0)]


def test_progress_and_limit():
    seen = []
    asked = []
    evaluate(
        images([0] * 10),
        lambda data: asked.append(grey(data)) or Classified(0),
        limit=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert asked == [0, 2, 4, 6, 8]
    assert seen == [(i, 5) for i in range(1, 6)]


def test_an_error_passes_through():
    def fail(data):
        raise UnavailableError("gone")

    with pytest.raises(UnavailableError, match="gone"):
        evaluate(images([0]), fail)


def test_an_image_that_who_answers_cannot_read_is_named():
    def fail(data):
        raise ImageError("the image is truncated")

    with pytest.raises(DataError, match=r"^made #0: the image is truncated; replace or remove the file$"):
        evaluate(images([0]), fail)


@given(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 300)))
def test_chosen_images_are_distinct_and_evenly_spread(count, limit):
    chosen = choose(images([0] * count), limit)
    assert len(chosen) == min(count, limit or count)
    assert chosen[0] == 0
    assert chosen[-1] < count
    gaps = {int(b - a) for a, b in itertools.pairwise(chosen)}
    assert min(gaps, default=1) >= 1
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_per_class_adds_up(pairs):
    labels, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    counted = per_class(("a", "b", "c"), labels, predicted)
    assert sum(c.images for c in counted) == len(pairs)
    assert sum(c.correct for c in counted) == sum(label == guess for label, guess in pairs)
    assert all(0 <= c.correct <= c.images for c in counted)
