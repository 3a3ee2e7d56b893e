"""What a prediction is, however it was made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


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
    """The fused answer for a batch of images."""

    logits: Float32
    """`[batch, classes]`"""
    missing: tuple[int, ...]
    """Ids of the sub-models whose feature was absent; the fusion's stand-in took its place."""
    timings: Timings

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
    def labels(self) -> Int64:
        """Index of the most likely class, int64 `[batch]`."""
        result: Int64 = self.logits.argmax(axis=1)
        return result
