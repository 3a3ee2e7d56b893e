"""Accuracy and latency over labelled images, wherever the answers come from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edvit.errors import DataError, ImageError
from edvit.inputs.datasets import LabelledImages

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Classified:
    """The answer for one image: the predicted class index, and whether the answer is degraded."""

    index: int
    degraded: bool = False


@dataclass(frozen=True)
class ClassAccuracy:
    """How many of a class's images got its label."""

    name: str
    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


@dataclass(frozen=True)
class Evaluation:
    """The answers for all images, counted.

    Attributes:
        classes: one entry per class that has images.
        latency_s: seconds per image, `[images]`, as the caller saw them.
        predicted: class index per image, `[images]`.
        degraded: answers made without every feature.
    """

    classes: tuple[ClassAccuracy, ...]
    latency_s: npt.NDArray[np.float64]
    predicted: Indices
    degraded: int

    @property
    def images(self) -> int:
        return len(self.predicted)

    @property
    def accuracy(self) -> float:
        return sum(c.correct for c in self.classes) / self.images

    def latency_at(self, percentile: float) -> float:
        """Seconds."""
        return float(np.percentile(self.latency_s, percentile))


def choose(images: LabelledImages, limit: int | None) -> Indices:
    """Indices of at most `limit` images, evenly spaced: data sorted by class still yields every class."""
    count = len(images) if limit is None else min(limit, len(images))
    return np.arange(count, dtype=np.int64) * len(images) // max(count, 1)


def evaluate(
    images: LabelledImages,
    answer: Callable[[bytes], Classified],
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Ask for each image, one after the other, as an image file; the clock runs around `answer` alone.

    Args:
        images: labelled by the class indices that `answer` gives (`LabelledImages.with_classes`).
        answer: from the bytes of an image file.
        limit: at most so many images, evenly spaced.
        progress: called with (done, total) after each image.

    Raises:
        DataError: an image cannot be read, here or by who answers; the message names it. Other errors of `answer` pass
            through.
    """
    chosen = choose(images, limit)
    answers: list[Classified] = []
    latency: list[float] = []
    for done, i in enumerate(chosen):
        data = images.encoded(int(i))
        start = time.perf_counter()
        try:
            answers.append(answer(data))
        except ImageError as error:
            raise DataError(f"{images.name(int(i))}: {error}; replace or remove the file") from None
        latency.append(time.perf_counter() - start)
        progress(done + 1, len(chosen))
    predicted = np.array([a.index for a in answers], dtype=np.int64)
    return Evaluation(
        classes=per_class(images.classes, images.labels[chosen], predicted),
        latency_s=np.array(latency),
        predicted=predicted,
        degraded=sum(a.degraded for a in answers),
    )


def per_class(names: tuple[str, ...], labels: Indices, predicted: Indices) -> tuple[ClassAccuracy, ...]:
    """Correct and total per class, classes without images left out."""
    total = np.bincount(labels, minlength=len(names))
    correct = np.bincount(labels[labels == predicted], minlength=len(names))
    return tuple(ClassAccuracy(name, int(correct[i]), int(total[i])) for i, name in enumerate(names) if total[i])
