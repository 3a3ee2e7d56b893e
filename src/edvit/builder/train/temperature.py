"""Temperature scaling (Guo et al., arXiv 1706.04599): probabilities that say how often an answer is accurate.

Logits over a temperature have the same order, so no answer changes; its probability does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Floats = npt.NDArray[np.floating]

LEAST, MOST = 0.25, 4.0
"""Bounds: images that are all answered accurately would ask for a temperature of 0."""
BINS = 15
"""The reliability diagram has so many bins, of equal width."""


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """The temperature at which held-out labels are likeliest, between `LEAST` and `MOST`; 1 without images.

    Args:
        logits: `[images, classes]`.
        labels: `[images]`.
    """
    if not len(labels):
        return 1.0
    exact, rows = np.asarray(logits, dtype=np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(exact / math.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(math.log(LEAST), math.log(MOST)), method="bounded")
    return math.exp(float(found.x))


@dataclass(frozen=True)
class Reliability:
    """How probabilities and accuracies agree, by bins of the probability of the answer.

    Attributes:
        images: in each bin, `[BINS]`.
        probability: mean probability of the answers in each bin; nan where there are none.
        accuracy: share of these answers that are accurate; nan where there are none.
    """

    images: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @classmethod
    def of(cls, logits: Floats, labels: npt.NDArray[np.int64]) -> Reliability:
        """How `logits`, `[images, classes]`, agree with `labels`, `[images]`."""
        best = np.exp(log_softmax(np.asarray(logits, dtype=np.float64), axis=1).max(axis=1))
        correct = np.asarray(logits).argmax(axis=1) == labels
        where = np.minimum((best * BINS).astype(np.int64), BINS - 1)
        images = np.bincount(where, minlength=BINS)
        with np.errstate(invalid="ignore"):
            return cls(
                images,
                np.bincount(where, weights=best, minlength=BINS) / images,
                np.bincount(where, weights=correct, minlength=BINS) / images,
            )

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: how far accuracy and probability differ, mean over images; 0 without."""
        held = self.images > 0
        apart = np.abs(self.accuracy[held] - self.probability[held])
        return float(np.sum(apart * self.images[held]) / max(1, self.images.sum()))
