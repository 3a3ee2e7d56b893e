"""scikit-learn's hand-written digits: 1,797 grey images of 8 x 8 pixels, shipped inside the package."""

from __future__ import annotations

import numpy as np

from edvit.errors import MissingExtraError
from edvit.inputs.datasets.images import ArrayImages, Split

TEST_IMAGES = 360
CLASSES = tuple("0123456789")


def read_digits(split: Split) -> ArrayImages:
    """1,437 training or 360 test images, always the same ones, every digit in proportion in both."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError('the digits ship with scikit-learn: pip install "edvit[build]"') from None
    data = load_digits()
    labels = np.asarray(data.target, dtype=np.int64)
    pixels = np.rint(np.asarray(data.images) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0)
    chosen = np.sort(train if split == "train" else test)
    return ArrayImages(classes=CLASSES, labels=labels[chosen], pixels=pixels[chosen], source=f"digits {split}")
