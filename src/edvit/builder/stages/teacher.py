"""Stage `teacher`: the base model's outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from edvit.builder.config import BuildConfig
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.stages.base import Base, load_extractor
from edvit.builder.subspace.rms import to_rms
from edvit.builder.train import teacher
from edvit.builder.train.augment import Views
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.teacher import TeacherView
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.inputs.preprocess import Preprocessing
from edvit.units import counted


@dataclass(frozen=True)
class Teacher:
    """The base model's outputs on the views of the training set.

    Attributes:
        views: one result a view.
        blocks: after which sub-models follow the residual stream.
        base: the base model.
        rotated: whether the streams are those of its rotated form.
        preprocessing: how images reach it.
    """

    views: tuple[Artifact, ...]
    blocks: tuple[int, ...]
    base: Artifact
    rotated: bool
    preprocessing: Preprocessing

    def open(self) -> tuple[TeacherView, ...]:
        """Map the outputs of every view."""
        return teacher.open_views([view.folder for view in self.views])

    def follow(self, device: TorchDevice) -> Callable[[Tensor], Tensor]:
        """The streams on a batch of images that is on the device, as `teacher.streams_of` computes them."""
        extractor = _extractor(self.base, self.preprocessing, rotated=self.rotated)
        device.place(extractor)
        return partial(_streams_of, extractor, self.blocks, device)


@dataclass(frozen=True)
class Teach(Resumable):
    """Runs the base model over one view of the training set."""

    STAGE: ClassVar[str] = "teacher"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    rotated: bool
    preprocessing: Preprocessing
    views: Views
    view: int
    blocks: tuple[int, ...]
    amp: bool | None
    device: TorchDevice = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        teacher.write_view(
            _extractor(self.base, self.preprocessing, rotated=self.rotated),
            self.views,
            self.view,
            folder,
            blocks=self.blocks,
            device=self.device,
            checkpoint=resume,
            progress=progress,
        )
        return {}


def teach(
    runner: Runner,
    config: BuildConfig,
    base: Base,
    views: Views,
    *,
    blocks: Sequence[int] = (),
    kept: int | None = None,
    preprocessing: Preprocessing,
    devices: Sequence[TorchDevice],
) -> Teacher:
    """The base model's outputs on the views, and its residual stream after the blocks that sub-models follow.

    Args:
        blocks: which these are.
        kept: on so many views the stream is kept, and computed again in recovery on the others; None: on all.
    """
    count, rotated, followed = config.resolved_views, config.rotated, tuple(blocks)
    stored = [followed if kept is None or view < kept else () for view in range(count)]
    jobs = [
        Teach(base.artifact, rotated, preprocessing, views, view, of_view, config.amp, device)
        for view, (of_view, device) in enumerate(zip(stored, cycle(devices), strict=False))
    ]
    return Teacher(runner.make_all(jobs, counted(count, "view")), followed, base.artifact, rotated, preprocessing)


def _extractor(base: Artifact, preprocessing: Preprocessing, *, rotated: bool) -> FeatureExtractor:
    """The base model as it teaches."""
    extractor = load_extractor(base, preprocessing)
    if rotated:
        extractor.model = to_rms(extractor.model)
    return extractor


def _streams_of(extractor: FeatureExtractor, blocks: tuple[int, ...], device: TorchDevice, pixels: Tensor) -> Tensor:
    return teacher.streams_of(extractor, pixels, blocks, device)
