"""Stage `recover`: each pruned sub-model is trained on its own classes and *other*, as the base model's student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar

from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models import checkpoint
from edvit.builder.models.family import describe
from edvit.builder.stages.base import weights_path
from edvit.builder.stages.prune import Group, load_rotation
from edvit.builder.stages.teacher import Teacher
from edvit.builder.train.augment import Views
from edvit.builder.train.base import accuracy, logits_of
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.recover import Recovery
from edvit.builder.train.recover import recover as train_student
from edvit.builder.train.training import Schedule
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.inputs.preprocess import Preprocessing
from edvit.units import counted


@dataclass(frozen=True)
class Recover(Resumable):
    """Trains one sub-model."""

    STAGE: ClassVar[str] = "recover"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    pruned: Artifact
    teacher: Teacher
    classes: tuple[int, ...]
    views: Views
    validation: ImageSet
    how: Recovery
    preprocessing: Preprocessing
    seed: int
    amp: bool | None
    device: TorchDevice = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        taught = self.teacher.open()
        computed = bool(self.teacher.blocks) and any(view.streams is None for view in taught)
        trained = train_student(
            checkpoint.load_model(weights_path(self.pruned)),
            self.classes,
            self.views,
            taught,
            self.how,
            rotation=load_rotation(self.pruned),
            blocks=self.teacher.blocks,
            follow=self.teacher.follow(self.device) if computed else None,
            mean=mean,
            std=std,
            seed=self.seed,
            device=self.device,
            checkpoint=resume,
            progress=progress,
        )
        checkpoint.save_model(folder / checkpoint.WEIGHTS, trained.model)
        architecture = describe(trained.model).model_dump(mode="json")
        extractor, part = FeatureExtractor(trained.model, mean, std), Checkpoint.part_of(resume, "validation")
        logits = logits_of(extractor, self.validation, device=self.device, checkpoint=part)
        return {
            "validation": accuracy(logits, self.validation),
            "architecture": architecture,
            "curve": trained.curve.note(),
        }


def recovery(config: BuildConfig) -> Recovery:
    """How a build trains its sub-models."""
    return Recovery(
        Schedule(epochs=config.recover_epochs, lr=config.resolved_recover_lr, warmup_epochs=1.0, ema_decay=0.995),
        batch_size=config.batch_size,
    )


def recover(
    runner: Runner,
    groups: Sequence[Group],
    pruned: Sequence[Artifact],
    teacher: Teacher,
    *,
    views: Views,
    validation: ImageSet,
    how: Recovery,
    preprocessing: Preprocessing,
    seed: int,
    amp: bool | None,
    devices: Sequence[TorchDevice],
) -> tuple[Artifact, ...]:
    """Train what pruning left for each group, several at a time.

    Raises:
        BuildError: training diverged.
    """
    jobs = [
        Recover(narrow, teacher, group.classes, views, validation, how, preprocessing, seed, amp, device)
        for group, narrow, device in zip(groups, pruned, cycle(devices), strict=False)
    ]
    return runner.make_all(jobs, counted(len(jobs), "sub-model"))
