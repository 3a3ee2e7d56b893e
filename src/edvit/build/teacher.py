"""The base model as teacher: its outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from edvit.build import backbone
from edvit.build.augment import Views
from edvit.build.backbone import FeatureExtractor

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


def write_outputs(
    model: VisionTransformer,
    extractor: FeatureExtractor,
    views: Views,
    *,
    count: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Run the base model over views 0 to `count` - 1 into `folder`."""
    architecture = backbone.describe(model)
    images = len(views.images)
    shapes = {"logits": architecture.classes, "features": architecture.widths.dim}
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, images, width)
        )
        for name, width in shapes.items()
    }
    with torch.inference_mode():
        for view in range(count):
            for start in range(0, images, BATCH):
                index = np.arange(start, min(start + BATCH, images))
                features = extractor(views.batch(view, index))
                arrays["features"][view, index] = features.numpy()
                arrays["logits"][view, index] = model.head(features).numpy()
                progress(view * images + index[-1] + 1, count * images)
    for array in arrays.values():
        array.flush()


def open_outputs(folder: Path) -> TeacherOutputs:
    """Map what `write_outputs` wrote."""
    return TeacherOutputs(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("logits", "features")))
