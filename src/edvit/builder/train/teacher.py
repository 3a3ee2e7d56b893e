"""The base model as teacher: its outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.filling import Layout, fill_arrays
from edvit.builder.models.family import describe
from edvit.builder.train.augment import Views
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import Architecture

BATCH = 128
LOGITS, FEATURES, STREAMS = "logits.npy", "features.npy", "streams.npy"


@dataclass(frozen=True)
class TeacherView:
    """What the base model says of each image in one view; arrays are mapped from disk.

    Attributes:
        logits: float32 `[n, classes]`.
        features: float32 `[n, dim]`.
        streams: float16 `[n, blocks, tokens, dim]`, the residual stream after some blocks; None where it was not kept.
    """

    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    streams: npt.NDArray[np.float16] | None


def stream_bytes(architecture: AnyArchitecture, images: int) -> int:
    """Bytes of the streams of one view after all blocks of `stream_blocks`; 0 where there is no residual stream."""
    if not isinstance(architecture, Architecture):
        return 0
    return 2 * images * len(stream_blocks(architecture)) * architecture.tokens * architecture.widths.dim


def stream_blocks(architecture: AnyArchitecture) -> tuple[int, ...]:
    """Blocks whose outputs a sub-model is to follow: the second half, but for the last one.

    Of the last block's output only the pooled tokens are read, and these are the feature. None where there is no
    residual stream.
    """
    if not isinstance(architecture, Architecture):
        return ()
    depth = len(architecture.widths.blocks)
    return tuple(range((depth - 1) // 2, depth - 1))


def streams_of(extractor: FeatureExtractor, pixels: Tensor, blocks: Sequence[int], device: TorchDevice = CPU) -> Tensor:
    """The base model's streams on a batch, as `write_view` keeps them but for rounding.

    Args:
        extractor: the base model, where `device` computes.
        pixels: on a scale of 0 to 255, float32 `[batch, channels, size, size]`, on the device.
        blocks: after which, ascending.
        device: what computes.

    Returns:
        float16 `[batch, blocks, tokens, dim]`, on the device, without a gradient.
    """
    with torch.no_grad(), device.autocast():
        return torch.stack(extractor.streams(pixels, blocks), dim=1).half()


def write_view(
    extractor: FeatureExtractor,
    views: Views,
    view: int,
    folder: Path,
    *,
    blocks: Sequence[int] = (),
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run the base model over one view, and the streams after `blocks` as well, into `folder`.

    Args:
        extractor: the base model.
        views: of the training set.
        view: which of them.
        folder: where the arrays are written; on the disk of the checkpoint.
        blocks: after which the streams are kept.
        device: what computes.
        checkpoint: as for `fill_arrays`.
        progress: called with images done and images in all.
    """
    device.place(extractor)
    shape, images = describe(extractor.model), len(views.images)
    arrays: dict[str, Layout] = {
        LOGITS: (np.float32, (images, shape.classes)),
        FEATURES: (np.float32, (images, shape.feature_dim)),
    }
    if blocks and isinstance(shape, Architecture):
        arrays[STREAMS] = (np.float16, (images, len(blocks), shape.tokens, shape.widths.dim))

    def write(index: npt.NDArray[np.int64], opened: Mapping[str, np.memmap]) -> None:
        pixels = views.batch(view, index, device)  # in float32, as sub-models see it: half a pixel off in bfloat16
        with torch.inference_mode(), device.autocast():
            vectors, after = extractor.follow(pixels, blocks)
            scores = extractor.model.head(vectors)
        opened[FEATURES][index] = vectors.float().cpu().numpy()
        opened[LOGITS][index] = scores.float().cpu().numpy()
        if STREAMS in opened:
            opened[STREAMS][index] = torch.stack(after, dim=1).half().cpu().numpy()

    fill_arrays(folder, arrays, images, write, batch=BATCH, checkpoint=checkpoint, progress=progress)


def open_views(folders: Sequence[Path]) -> tuple[TeacherView, ...]:
    """Map what `write_view` wrote, one folder a view."""
    return tuple(
        TeacherView(
            logits=np.load(folder / LOGITS, mmap_mode="r"),
            features=np.load(folder / FEATURES, mmap_mode="r"),
            streams=np.load(folder / STREAMS, mmap_mode="r") if (folder / STREAMS).exists() else None,
        )
        for folder in folders
    )
