"""Labelled training images and, behind them, images that only the base model names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edvit.builder.images import ImageSet
from edvit.builder.train.augment import UNLABELLED


@dataclass(frozen=True)
class WithUnlabelled:
    """What the views of a teacher are made of where there are images without labels.

    Attributes:
        labelled: the training set, whose images come first.
        unlabelled: the others; what `labels` they have says nothing.
    """

    labelled: ImageSet
    unlabelled: ImageSet

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, int64 `[n]`; `UNLABELLED` where there is none."""
        return np.concatenate([self.labelled.labels, np.full(len(self.unlabelled), UNLABELLED, dtype=np.int64)])

    def pixels(self, index: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.uint8]:
        """Images `index` of both, read into memory: uint8 `[len(index), channels, height, width]`."""
        rows = np.arange(len(self))[index]
        known = rows < len(self.labelled)
        first = self.labelled.pixels(rows[known])
        pixels = np.empty((len(rows), *first.shape[1:]), dtype=np.uint8)
        pixels[known] = first
        pixels[~known] = self.unlabelled.pixels(rows[~known] - len(self.labelled))
        return pixels

    def __getstate__(self) -> dict[str, object]:
        return {"labelled": self.labelled, "unlabelled": self.unlabelled}
