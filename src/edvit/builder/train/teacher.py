"""The base model as teacher: its outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.arrays import create_array
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.models.family import describe
from edvit.builder.train.augment import Views
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import Architecture

BATCH = 128
LOGITS, FEATURES, STREAMS = "logits.npy", "features.npy", "streams.npy"
STREAM_LIMIT_BYTES = 12 * 1024**3
"""Disk that the streams of all views may take together unless `--work-limit` says otherwise."""


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


def stream_bytes(architecture: AnyArchitecture, images: int, views: int) -> int:
    """Bytes of the streams after one block, on all views; 0 where there is no residual stream."""
    if not isinstance(architecture, Architecture):
        return 0
    return 2 * images * views * architecture.tokens * architecture.widths.dim


def stream_blocks(
    architecture: AnyArchitecture, images: int, views: int, limit: int | None = STREAM_LIMIT_BYTES
) -> tuple[int, ...]:
    """Blocks whose outputs a sub-model is to follow: the second half, but for the last one.

    Of the last block's output only the pooled tokens are read, and these are the feature. Where the streams would take
    more than `limit` bytes, every other of them, or every third, and so on; none where there is no residual stream.
    """
    if not isinstance(architecture, Architecture):
        return ()
    depth = len(architecture.widths.blocks)
    blocks = tuple(range((depth - 1) // 2, depth - 1))
    if limit is None or not blocks:
        return blocks
    each = stream_bytes(architecture, images, views)
    if each > limit:
        return ()
    step = math.ceil(len(blocks) / (limit // each))
    return blocks[::-1][::step][::-1]


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
        checkpoint: how many images are done; the arrays lie beside it until all are.
        progress: called with images done and images in all.
    """
    device.place(extractor)
    shape, images = describe(extractor.model), len(views.images)
    arrays: dict[str, tuple[npt.DTypeLike, tuple[int, ...]]] = {
        LOGITS: (np.float32, (images, shape.classes)),
        FEATURES: (np.float32, (images, shape.feature_dim)),
    }
    if blocks and isinstance(shape, Architecture):
        arrays[STREAMS] = (np.float16, (images, len(blocks), shape.tokens, shape.widths.dim))
    filled = folder if checkpoint is None else checkpoint.folder
    state = None if checkpoint is None else checkpoint.load()
    begun = None if state is None else _reopen(filled, arrays)
    opened = begun or {name: create_array(filled / name, dtype, sizes) for name, (dtype, sizes) in arrays.items()}
    first = 0 if begun is None or state is None else int(state["images"])
    if first:
        progress(first, images)
    with torch.inference_mode():
        for start in range(first, images, BATCH):
            index = np.arange(start, min(start + BATCH, images))
            pixels = views.batch(view, index, device)  # in float32, as sub-models see it: half a pixel off in bfloat16
            with device.autocast():
                vectors, after = extractor.follow(pixels, blocks)
                scores = extractor.model.head(vectors)
            opened[FEATURES][index] = vectors.float().cpu().numpy()
            opened[LOGITS][index] = scores.float().cpu().numpy()
            if STREAMS in opened:
                opened[STREAMS][index] = torch.stack(after, dim=1).half().cpu().numpy()
            done = int(index[-1]) + 1
            progress(done, images)
            if checkpoint is not None and checkpoint.due:
                _flush(opened)
                checkpoint.save({"images": done}, done, images)
    _flush(opened)
    if filled != folder:
        for name in opened:
            (filled / name).replace(folder / name)


def _flush(arrays: Mapping[str, np.memmap]) -> None:
    for array in arrays.values():
        array.flush()


def _reopen(folder: Path, arrays: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> dict[str, np.memmap] | None:
    """The arrays that a killed process was filling; None where one is not there as it should be."""
    opened = {}
    for name, (dtype, sizes) in arrays.items():
        try:
            array = np.lib.format.open_memmap(folder / name, mode="r+")
        except (OSError, ValueError):
            return None
        if array.dtype != dtype or array.shape != sizes:
            return None
        opened[name] = array
    return opened


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
