"""Stages `scores` and `prune`, by channels: every component is scored for each group, and the best are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Job, Note, Resumable
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models import checkpoint
from edvit.builder.models.family import AnyWidths, Scored, Scoring, family_for
from edvit.builder.options import Fit
from edvit.builder.stages.base import Base, load_extractor, weights_path
from edvit.builder.stages.data import Data
from edvit.builder.stages.prune import Group, calibration_rows, noted, save_cut
from edvit.builder.vit import backbone
from edvit.builder.vit.importance import UNSEEING
from edvit.builder.vit.memory import images_within
from edvit.inputs.preprocess import Preprocessing

SCORES = "scores.safetensors"
SCORED_AT_ONCE = 32
"""Images, unless memory is limited. How many does not change a score but for rounding, and is no part of a key."""
SCORED_BY_JOB = 8
"""Images of a group whose scores are one job, and as much as a stopped build loses: three minutes of a ViT-L on one
core."""


@dataclass(frozen=True)
class Score(Job):
    """Scores every component on some of a group's images."""

    STAGE: ClassVar[str] = "scores"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    classes: tuple[int, ...]
    images: ImageSet
    preprocessing: Preprocessing
    how: Scoring

    def run(self, folder: Path, progress: Progress) -> Note:
        extractor = load_extractor(self.base, self.preprocessing)
        pixels = extractor.normalise(torch.from_numpy(self.images.pixels()))
        family_for(extractor.model).score(extractor.model, pixels, self.how, progress, folder / SCORES)
        return {"images": len(pixels)}


@dataclass(frozen=True)
class Select(Resumable):
    """Makes a group's pruned model from the components that score best."""

    STAGE: ClassVar[str] = "prune"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    scores: tuple[Artifact, ...]
    widths: AnyWidths
    fit: Fit
    validation: ImageSet
    preprocessing: Preprocessing

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        model = checkpoint.load_model(weights_path(self.base))
        scored = [Scored(part.folder / SCORES, part.note["images"]) for part in self.scores]
        narrowed = family_for(model).cut(model, scored, self.widths, self.fit)
        save_cut(folder, narrowed.model, narrowed.rotation)
        note = noted(
            narrowed.model,
            narrowed.kept,
            preprocessing=self.preprocessing,
            validation=self.validation,
            resume=resume,
        )
        progress(1, 1)
        return note


def prune(
    runner: Runner,
    config: BuildConfig,
    data: Data,
    base: Base,
    groups: Sequence[Group],
    *,
    preprocessing: Preprocessing,
) -> tuple[Artifact, ...]:
    """A pruned model for each group, with a head over all classes and not trained any further."""
    jobs = [
        Select(base.artifact, parts, group.widths, config.resolved_widths, data.validation, preprocessing)
        for group, parts in zip(
            groups, _scores(runner, config, data, base, groups, preprocessing=preprocessing), strict=True
        )
    ]
    return runner.make_all(jobs, "channels")


def _scores(
    runner: Runner,
    config: BuildConfig,
    data: Data,
    base: Base,
    groups: Sequence[Group],
    *,
    preprocessing: Preprocessing,
) -> tuple[tuple[Artifact, ...], ...]:
    """Importance of every component for each group, on part after part of its images; other widths use the same."""
    criterion = config.resolved_criterion
    # Fisher-KL ranks whole heads poorly, and there are few of them.
    exact_heads = config.attention == "heads" and criterion == "fisher-kl"
    of_group = [_parts_to_score(data, group, config) for group in groups]
    batch_size = SCORED_AT_ONCE
    if config.memory_limit_mb is not None:
        each = config.memory_limit_mb * 1_000_000 // min(config.workers, sum(map(len, of_group)))
        batch_size = min(batch_size, images_within(each, backbone.describe(base.model)))
    jobs = [
        Score(
            base.artifact,
            group.classes,
            data.train.take(rows),
            preprocessing,
            Scoring(criterion, batch_size, exact_heads, config.seed + part),
        )
        for group, parts in zip(groups, of_group, strict=True)
        for part, rows in enumerate(parts)
    ]
    made = iter(runner.make_all(jobs, f"scoring ({criterion})", line="prune"))
    return tuple(tuple(islice(made, len(parts))) for parts in of_group)


def _parts_to_score(data: Data, group: Group, config: BuildConfig) -> list[npt.NDArray[np.int64]]:
    """The group's calibration images, cut into parts; one part where the criterion sees no image."""
    rows = calibration_rows(data.train, group.classes, config.calibration, config.seed)
    if config.resolved_criterion in UNSEEING:
        return [rows]
    return np.array_split(rows, -(-len(rows) // SCORED_BY_JOB))
