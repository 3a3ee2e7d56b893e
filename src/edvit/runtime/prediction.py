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
UNKNOWN = "unknown"
"""Label of an image that is taken for none of the classes. A class may have that name; its index is not -1."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Record):
    """One class with its probability."""

    label: str
    index: int
    probability: float


class ImageAnswer(Score):
    """The most probable class of one image, and the five most probable ones, best first.

    Where the image is taken for none of the classes, `label` is `unknown` and `index` -1; `probability` is that of the
    most probable class.
    """

    top: tuple[Score, ...]
    unknown: bool = False
    """The most probable class is less probable than it has to be."""


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
    unknown_below: float = 0.0
    """An image whose most probable class is less probable than this is taken for none of the classes."""

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
    def unknown(self) -> npt.NDArray[np.bool_]:
        """Which images are taken for none of the classes, `[batch]`."""
        result: npt.NDArray[np.bool_] = self.probabilities.max(axis=1) < self.unknown_below
        return result

    @property
    def indices(self) -> Int64:
        """Index of the most likely class, int64 `[batch]`; the first of equal ones; -1 for none of them."""
        result: Int64 = np.where(self.unknown, -1, self.logits.argmax(axis=1))
        return result

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of the most likely class, or `unknown`, one for each image."""
        return tuple(self.classes[index] if index >= 0 else UNKNOWN for index in self.indices)

    @property
    def images(self) -> tuple[ImageAnswer, ...]:
        """The best classes of each image; equal scores are ordered by class index."""
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :TOP]
        found = []
        for probabilities, best, unknown in zip(self.probabilities, order, self.unknown, strict=True):
            top = tuple(Score(label=self.classes[i], index=int(i), probability=float(probabilities[i])) for i in best)
            first = top[0].model_dump() | ({"label": UNKNOWN, "index": -1} if unknown else {})
            found.append(ImageAnswer(**first, top=top, unknown=bool(unknown)))
        return tuple(found)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answer for each image."""
        return tuple(
            Answer(**dict(image), degraded=self.degraded, missing=self.missing, missing_classes=self.missing_classes)
            for image in self.images
        )
