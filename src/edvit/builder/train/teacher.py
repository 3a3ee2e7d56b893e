"""The base model as teacher: its outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.arrays import create_array
from edvit.builder.models.family import describe
from edvit.builder.train.augment import Views
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import Architecture

BATCH = 128
STREAMS = "streams.npy"
STREAM_LIMIT_BYTES = 12 * 1024**3
"""Disk that the streams of all views may take together; beyond, sub-models follow fewer blocks, or none."""


@dataclass(frozen=True)
class TeacherView:
    """What the base model says of each image in one view; arrays are mapped from disk.

    Attributes:
        logits: float32 `[n, classes]`.
        features: float32 `[n, dim]`.
        streams: float16 `[n, blocks, tokens, dim]`, the residual stream after some blocks, or None.
    """

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    streams: npt.NDArray[np.float16] | None


def stream_blocks(architecture: AnyArchitecture, images: int, views: int) -> tuple[int, ...]:
    """Blocks whose outputs a sub-model is to follow: the second half, but for the last one.

    Of the last block's output only the pooled tokens are read, and these are the feature. Where the streams would take
    more than `STREAM_LIMIT_BYTES`, every other of them, or every third, and so on; none where there is no residual
    stream.
    """
    if not isinstance(architecture, Architecture):
        return ()
    depth = len(architecture.widths.blocks)
    blocks = tuple(range((depth - 1) // 2, depth - 1))
    each = 2 * images * views * architecture.tokens * architecture.widths.dim
    if not blocks or each > STREAM_LIMIT_BYTES:
        return ()
    step = math.ceil(len(blocks) / (STREAM_LIMIT_BYTES // each))
    return blocks[::-1][::step][::-1]


def write_view(
    extractor: FeatureExtractor,
    views: Views,
    view: int,
    folder: Path,
    *,
    blocks: Sequence[int] = (),
    device: TorchDevice = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run the base model over one view, and the streams after `blocks` as well, into `folder`."""
    device.place(extractor)
    shape, images = describe(extractor.model), len(views.images)
    logits = create_array(folder / "logits.npy", np.float32, (images, shape.classes))
    features = create_array(folder / "features.npy", np.float32, (images, shape.feature_dim))
    streams = None
    if blocks and isinstance(shape, Architecture):
        sizes = (images, len(blocks), shape.tokens, shape.widths.dim)
        streams = create_array(folder / STREAMS, np.float16, sizes)
    with torch.inference_mode():
        for start in range(0, images, BATCH):
            index = np.arange(start, min(start + BATCH, images))
            pixels = views.batch(view, index, device)  # in float32, as sub-models see it: half a pixel off in bfloat16
            with device.autocast():
                vectors, after = extractor.follow(pixels, blocks)
                scores = extractor.model.head(vectors)
            features[index] = vectors.float().cpu().numpy()
            logits[index] = scores.float().cpu().numpy()
            if streams is not None:
                streams[index] = torch.stack(after, dim=1).half().cpu().numpy()
            progress(index[-1] + 1, images)
    for array in (logits, features, streams):
        if array is not None:
            array.flush()


def open_views(folders: Sequence[Path]) -> tuple[TeacherView, ...]:
    """Map what `write_view` wrote, one folder a view."""
    return tuple(
        TeacherView(
            logits=np.load(folder / "logits.npy", mmap_mode="r"),
            features=np.load(folder / "features.npy", mmap_mode="r"),
            streams=np.load(folder / STREAMS, mmap_mode="r") if (folder / STREAMS).exists() else None,
        )
        for folder in folders
    )
