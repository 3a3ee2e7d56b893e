import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from edvit.builder.report.statistics import Difference, Share, p_text


def answers(*counts):
    """Pairs of answers: so many that both, the first alone, the second alone and neither get."""
    return tuple(np.repeat(pattern, counts) for pattern in ([True, True, False, False], [True, False, True, False]))


def wilson(correct, images, z=1.959963984540054):
    """The formula as Wilson (1927) has it."""
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return centre - half, centre + half


@pytest.mark.parametrize(("correct", "images"), [(357, 360), (0, 10), (10, 10), (1, 2), (8720, 10_000)])
def test_the_interval_is_wilsons(correct, images):
    assert Share(correct, images).interval == pytest.approx(wilson(correct, images), abs=1e-12)


def test_a_share_counts_accurate_answers():
    labels, predicted = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])
    assert Share.of(predicted == labels) == Share(2, 4)
    assert Share(2, 4).value == accuracy_score(labels, predicted)


def test_of_no_images_nothing_is_known():
    assert Share.of(np.array([], dtype=bool)) == Share(0, 0)
    assert Share(0, 0).value is None
    assert Share(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("more", "less", "p"),
    # Twice the tail of a fair coin, by hand.
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 / 2**5), (6, 0, 2 / 2**6), (1, 7, 2 * (1 + 8) / 2**8)],
)
def test_the_test_is_mcnemars_exact_one(more, less, p):
    found = Difference.of(*answers(90, more, less, 3))
    assert (found.more, found.less, found.images) == (more, less, 93 + more + less)
    assert found.p == pytest.approx(p)
    assert found.p == pytest.approx(Difference(less, more, found.images).p), "two-sided"
    assert found.shown == (p < 0.05)
    assert found.points == pytest.approx(100 * (more - less) / found.images)


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "p = 1"), (0.4123, "p = 0.41"), (0.0034, "p = 0.0034"), (1e-9, "p < 0.001")]
)
def test_p_as_people_read_it(p, text):
    assert p_text(p) == text
