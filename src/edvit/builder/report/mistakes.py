"""The mistakes that a model is most confident of, with small pictures of what it was shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.special import logsumexp, softmax

MISTAKES = 12
"""Shown at most."""
SIDE = 96
"""Pixels of a picture's longer side, at most."""


@dataclass(frozen=True)
class Mistake:
    """One image that was answered wrongly.

    Attributes:
        label: its class index.
        predicted: the class index that was answered.
        probability: that the model gave its answer, 0 to 1.
        picture: a PNG as a `data:` URI.
    """

    label: int
    predicted: int
    probability: float
    picture: str


def most_confident(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of at most `MISTAKES` images, the most confident mistake first.

    Args:
        scores: logits `[n, classes]`.
        labels: class indices `[n]`.
    """
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    rest = scores[wrong].astype(np.float64)
    highest = rest.max(axis=1)
    rest[np.arange(len(wrong)), rest.argmax(axis=1)] = -np.inf
    # The log odds of the answer: of probabilities themselves, many round to 1.
    odds = highest - logsumexp(rest, axis=1)
    return np.asarray(wrong[np.argsort(-odds, kind="stable")][:MISTAKES])


def describe(scores: npt.NDArray[np.float32], label: int, pixels: npt.NDArray[np.uint8]) -> Mistake:
    """One mistake.

    Args:
        scores: logits `[classes]`.
        label: the true class.
        pixels: the model's input, `[channels, height, width]`.
    """
    predicted = int(scores.argmax())
    return Mistake(label, predicted, float(softmax(scores)[predicted]), png_uri(pixels))


def png_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """A small PNG of an image `[1 or 3, height, width]` as a `data:` URI."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
