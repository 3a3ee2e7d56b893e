"""Stage `teacher`: the base model's outputs on every view of the training set, computed once for all sub-models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar

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
from edvit.inputs.preprocess import Preprocessing
from edvit.units import counted


@dataclass(frozen=True)
class Teacher:
    """The base model's outputs on the views of the training set.

    Attributes:
        views: one result a view.
        blocks: after which the residual stream was kept.
    """

    views: tuple[Artifact, ...]
    blocks: tuple[int, ...]

    def open(self) -> tuple[TeacherView, ...]:
        """Map the outputs of every view."""
        return teacher.open_views([view.folder for view in self.views])


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
        extractor = load_extractor(self.base, self.preprocessing)
        if self.rotated:
            extractor.model = to_rms(extractor.model)
        teacher.write_view(
            extractor,
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
    preprocessing: Preprocessing,
    devices: Sequence[TorchDevice],
) -> Teacher:
    """The base model's outputs on the views, and its residual stream after the blocks that sub-models follow."""
    count = config.resolved_views
    jobs = [
        Teach(base.artifact, config.rotated, preprocessing, views, view, tuple(blocks), config.amp, device)
        for view, device in zip(range(count), cycle(devices), strict=False)
    ]
    return Teacher(runner.make_all(jobs, counted(count, "view")), tuple(blocks))
