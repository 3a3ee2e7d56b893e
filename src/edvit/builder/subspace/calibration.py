"""The images that a cut is calibrated on, given to the model in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edvit.errors import DataError
from edvit.shape.image import ImageSize


class Images(Protocol):
    """What `edvit.builder.images.ImageSet` offers."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, `[n]`."""

    def pixels(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """`[len(index), channels, H, W]`"""


@dataclass(frozen=True)
class Calibration:
    """Labelled images and how the model wants them.

    Attributes:
        images: uint8 pixels and labels.
        mean: per channel, on a scale of 0 to 1.
        std: per channel, on a scale of 0 to 1.
        batch_size: images that go through a model at once.
    """

    images: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int = 32

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.images.labels

    def batches(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Rows, and their images normalised, float32 `[batch, channels, H, W]`, on torch's default device."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            yield chosen, (torch.as_tensor(self.images.pixels(chosen)).float() / 255.0 - mean) / std

    def check(self, channels: int, size: ImageSize) -> None:
        """Raise DataError unless there are images, of a model's shape."""
        if len(self.images) == 0:
            raise DataError("no images to calibrate on")
        shape = self.images.pixels(np.arange(1)).shape[1:]
        wanted = (channels, *size)
        if shape != wanted or len(self.mean) != channels or len(self.std) != channels:
            raise DataError(f"calibration images are {list(shape)}, the model takes {list(wanted)}")
