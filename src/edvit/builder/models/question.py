"""Whether a base model knows what it is said to know: asked on labelled images, before anything is cut.

Weights may be right and their surroundings wrong: another order of classes or of colour channels, another mean and
deviation, another way of pooling. None of these raises an error; each shows in what the model answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

Labels = npt.NDArray[np.int64]

NEAR_CHANCE = 0.1
"""A model that gets a smaller share of what chance leaves open knows nothing of the data."""
SURE = 0.001
"""Largest p-value at which an explanation counts as found: there are several, and a build stops for it."""
WORTH = 0.05
"""Smallest gain in accuracy for which it does."""
EXPLAINED = 0.5
"""Accuracy that another order of classes has to reach: below, something else is wrong."""
CLAIMED = 0.2
"""How far a model may be below the accuracy that its checkpoint says."""


def better(predicted: Labels, other: Labels, labels: Labels) -> bool:
    """Whether other predictions are right clearly more often, by an exact McNemar test and by `WORTH`."""
    right, wrong = predicted == labels, other == labels
    gained, lost = int((wrong & ~right).sum()), int((right & ~wrong).sum())
    if gained + lost == 0 or gained - lost < WORTH * len(labels):
        return False
    return bool(binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue < SURE)


def near_chance(predicted: Labels, labels: Labels, classes: int) -> bool:
    """Whether predictions are about as good as drawing a class, or may well be."""
    hits, chance = int((predicted == labels).sum()), 1 / classes
    sure = bool(binomtest(hits, len(labels), chance, alternative="greater").pvalue < SURE)
    return not sure or (hits / len(labels) - chance) / (1 - chance) < NEAR_CHANCE


def other_order(predicted: Labels, labels: Labels, classes: int) -> Labels | None:
    """The class that each output seems to stand for, `[classes]`, where that is not the class of its own number.

    The order is matched on every second image (Hungarian method on the confusion matrix) and tested on the others.

    Returns:
        None where the outputs' own order is as good.
    """
    fitted, tested = slice(0, None, 2), slice(1, None, 2)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (predicted[fitted], labels[fitted]), 1)
    # Where an output was never given, its own number is as likely as any other class.
    _, order = linear_sum_assignment(2 * confusion + np.eye(classes, dtype=np.int64), maximize=True)
    matched = np.asarray(order, dtype=np.int64)
    return matched if better(predicted[tested], matched[predicted[tested]], labels[tested]) else None


def describe_order(order: Labels, classes: Sequence[str], head: Sequence[int] | None = None) -> str:
    """What an order found by `other_order` means, for a message.

    Args:
        order: the class that each class of the data was found to be, `[classes]`.
        classes: their names.
        head: the output of the head that was taken for each of them; None: that of its own number.
    """
    outputs = range(len(order)) if head is None else head
    found = sorted((output, classes[index], own != index)
                   for own, (output, index) in enumerate(zip(outputs, order, strict=True)))  # fmt: skip
    if [name for _, name, _ in found] == sorted(classes):
        return "they look like the classes' names sorted letter by letter, as torchvision's ImageFolder has them"
    moved = [f"output {output} like {name!r}" for output, name, other in found if other]
    pairs = ", ".join(moved[:4])
    return f"{pairs} and {len(moved) - 4} more" if len(moved) > 4 else pairs
