"""scikit-learn's digits as decoded image sets, as the data stage of a build leaves them."""

from __future__ import annotations

import numpy as np

from edvit.builder.images import open_images, split_validation, write_images
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing

HOW = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.5,))


def digit_images(folder, split="train"):
    """Every image of a split, an `ImageSet`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_images(read_split("digits", split), HOW, folder, lambda done, total: None)
    return open_images(folder)


def train_and_validation(folder, count=None):
    """Two sets of digits; `count` images of them in all."""
    every = digit_images(folder)
    if count is not None:
        every = every.take(np.arange(count))
    train, validation = split_validation(every.labels, np.arange(len(every)), 0.2)
    return every.take(train), every.take(validation)
