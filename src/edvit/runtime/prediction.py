"""What a prediction is, however it was made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


TOP = 5
"""Classes that an answer names."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Record):
    """One class with its probability."""

    label: str
    index: int
    probability: float


class ImageAnswer(Score):
    """The most probable class of one image, and the five most probable ones, best first."""

    top: tuple[Score, ...]


class Completeness(_Record):
    """Whether every sub-model had its part in an answer."""

    degraded: bool
    """An answer made without every feature."""
    missing: tuple[int, ...]
    """Sub-models whose feature is missing."""
    missing_classes: tuple[str, ...] = ()
    """The classes of these sub-models: what is told apart less well for the lack of them."""


class Answer(Completeness, ImageAnswer):
    """The answer for one image or one sound."""


@dataclass(frozen=True)
class Timings:
    """How long the parts of a prediction took, seconds."""

    total_s: float
    """The whole call."""
    gather_s: float
    """The time from sending the images to the last feature that was waited for."""
    slowest_run_s: float
    """The slowest sub-model's own run, as its device measured it."""
    fuse_s: float


@dataclass(frozen=True)
class Prediction:
    """The fused answer for a batch of images or sounds."""

    logits: Float32
    """`[batch, classes]`"""
    classes: tuple[str, ...]
    """Class names, in the order of their indices."""
    missing: tuple[int, ...]
    """Ids of the sub-models whose feature was absent; the fusion's stand-in took its place."""
    timings: Timings
    missing_classes: tuple[str, ...] = ()
    """Names of the classes in the groups of the missing sub-models."""

    @property
    def degraded(self) -> bool:
        """Whether it was made without every feature."""
        return bool(self.missing)

    @property
    def probabilities(self) -> Float32:
        """Softmax of the logits, float32 `[batch, classes]`."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        result: Float32 = powers / powers.sum(axis=1, keepdims=True)
        return result

    @property
    def indices(self) -> Int64:
        """Index of the most likely class, int64 `[batch]`; the first of equal ones."""
        result: Int64 = self.logits.argmax(axis=1)
        return result

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the most likely class, one for each image."""
        return tuple(self.classes[index] for index in self.indices)

    @property
    def images(self) -> tuple[ImageAnswer, ...]:
        """The best classes of each image; equal scores are ordered by class index."""
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :TOP]
        found = []
        for probabilities, best in zip(self.probabilities, order, strict=True):
            top = tuple(Score(label=self.classes[i], index=int(i), probability=float(probabilities[i])) for i in best)
            found.append(ImageAnswer(**top[0].model_dump(), top=top))
        return tuple(found)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answer for each image."""
        return tuple(
            Answer(**dict(image), degraded=self.degraded, missing=self.missing, missing_classes=self.missing_classes)
            for image in self.images
        )
