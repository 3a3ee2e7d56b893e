"""The base model as teacher: its outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.augment import Views
from edvit.builder.backbone import FeatureExtractor

BATCH = 128


@dataclass(frozen=True)
class TeacherOutputs:
    """What the base model says of each image in each view.

    Attributes:
        logits: float32 `[views, n, classes]`, mapped from disk.
        features: float32 `[views, n, dim]`, mapped from disk.
    """

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    @property
    def views(self) -> int:
        return len(self.logits)


def create_outputs(folder: Path, *, views: int, images: int, classes: int, dim: int) -> None:
    """Lay out the arrays that `write_view` fills, one view at a time, also from several processes."""
    for name, width in {"logits": classes, "features": dim}.items():
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(views, images, width)
        ).flush()


def write_view(
    extractor: FeatureExtractor, views: Views, view: int, folder: Path, progress: Callable[[int, int], None]
) -> None:
    """Run the base model over one view, into the arrays of `create_outputs`."""
    logits, features = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("logits", "features"))
    images = len(views.images)
    with torch.inference_mode():
        for start in range(0, images, BATCH):
            index = np.arange(start, min(start + BATCH, images))
            vectors = extractor(views.batch(view, index))
            features[view, index] = vectors.numpy()
            logits[view, index] = extractor.model.head(vectors).numpy()
            progress(index[-1] + 1, images)
    logits.flush()
    features.flush()


def open_outputs(folder: Path) -> TeacherOutputs:
    """Map what `write_view` wrote."""
    return TeacherOutputs(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("logits", "features")))
