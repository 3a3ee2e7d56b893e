import base64
import io

import numpy as np
import pytest
from PIL import Image

from edvit.builder.report.mistakes import MISTAKES, SIDE, describe, most_confident, png_uri


def opened(uri):
    """The picture in a `data:` URI."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_most_confident_mistake_is_first_and_what_is_accurate_is_none():
    scores = np.array([[9, 0], [1, 0], [60, 0], [0, 80], [3, 0]], dtype=np.float32)
    labels = np.array([0, 1, 1, 0, 1])
    assert most_confident(scores, labels).tolist() == [3, 2, 4, 1], "also where both probabilities round to 1"


def test_there_are_never_many():
    scores = np.tile(np.array([[5, 0]], dtype=np.float32), (1000, 1))
    assert most_confident(scores, np.ones(1000, dtype=np.int64)).tolist() == list(range(MISTAKES))
    assert most_confident(scores, np.zeros(1000, dtype=np.int64)).tolist() == []


def test_a_mistake_says_what_was_answered_and_how_surely():
    mistake = describe(np.log(np.array([0.7, 0.2, 0.1], dtype=np.float32)), 2, np.zeros((1, 8, 8), np.uint8))
    assert (mistake.label, mistake.predicted) == (2, 0)
    assert mistake.probability == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 64, 96)])
def test_a_small_picture_is_kept_as_it_is(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = np.asarray(opened(png_uri(pixels)))
    assert np.array_equal(found if shape[0] == 1 else found.transpose(2, 0, 1), pixels if shape[0] == 3 else pixels[0])


def test_a_large_picture_is_made_small():
    uri = png_uri(np.random.default_rng(0).integers(0, 256, (3, 384, 384), dtype=np.uint8))
    assert opened(uri).size == (SIDE, SIDE)
    assert len(uri) < 50_000
