"""Random images with labels, in memory, as a cut is calibrated on."""

from __future__ import annotations

import numpy as np

from edvit.builder.subspace.calibration import Calibration


class ArrayImages:
    """Pixels and labels that are there already."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self._pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        return self._pixels[index]


def calibration(count: int = 60, classes: int = 5, seed: int = 0, batch_size: int = 16) -> Calibration:
    """Random 8x8 images, labels 0 to classes - 1 in turn."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return of(pixels, np.arange(count) % classes, batch_size)


def of(pixels: np.ndarray, labels: np.ndarray, batch_size: int = 16) -> Calibration:
    """These images, with the mean and deviation of uniform noise."""
    return Calibration(ArrayImages(pixels, labels), (0.5,) * 3, (0.25,) * 3, batch_size)
