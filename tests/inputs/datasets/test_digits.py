import numpy as np
from sklearn.datasets import load_digits

from edvit.inputs.datasets import read_split


def test_splits_are_fixed_disjoint_and_stratified():
    train, test = read_split("digits", "train"), read_split("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert np.array_equal(test.pixels, read_split("digits", "test").pixels)
    for digit in range(10):
        share = (test.labels == digit).sum() / ((test.labels == digit).sum() + (train.labels == digit).sum())
        assert abs(share - 360 / 1797) < 0.005

    whole = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    together = np.concatenate([train.pixels, test.pixels])
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole))


def test_images_are_grey_and_span_the_range():
    test = read_split("digits", "test")
    image = test.image(0)
    assert (image.mode, image.size) == ("L", (8, 8))
    assert test.pixels.max() == 255
    assert test.name(3) == "digits test #3"
