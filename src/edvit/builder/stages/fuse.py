"""Stage `fuse`: the fusion is trained on the frozen sub-models' features, and exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from edvit.builder.config import BuildConfig
from edvit.builder.export import onnx_file
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.models.checkpoint import parse_architecture
from edvit.builder.stages.export import FEATURES, SAMPLES, SUBMODEL_FILE, VALIDATION, load_head
from edvit.builder.stages.prune import Group
from edvit.builder.stages.teacher import Teacher
from edvit.builder.train.augment import Views
from edvit.builder.train.base import accuracy
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.fusion import FusionTraining, Samples, train_fusion
from edvit.builder.train.teacher import open_views
from edvit.builder.train.temperature import fit_temperature
from edvit.builder.train.training import Schedule
from edvit.shape.any import AnyArchitecture

FUSION_VIEWS = 4
"""Views of the training set that the fusion is trained on, at most."""
TRAINED_EPOCHS = 8
"""Epochs of recovery from which one view serves the fusion as well as four (docs/decisions/2026-11-24-recovery.md)."""
FUSION_EPOCHS = 12
FUSION_FILE = "fusion.onnx"
UNKNOWN_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the validation images for which a bundle says below which probability to answer *unknown*."""


@dataclass(frozen=True)
class Fused:
    """Trained sub-models and their fusion, all exported.

    Attributes:
        groups: what each sub-model is for.
        pruned: as pruning left them.
        recovered: as training left them.
        exported: with the head of each.
        files: with the ONNX file that a device runs.
        fusion: the fusion.
    """

    groups: tuple[Group, ...]
    pruned: tuple[Artifact, ...]
    recovered: tuple[Artifact, ...]
    exported: tuple[Artifact, ...]
    files: tuple[Artifact, ...]
    fusion: Artifact

    def architecture(self, submodel: int) -> AnyArchitecture:
        """The shape of a sub-model as it runs on a device: without a head."""
        shape = parse_architecture(self.recovered[submodel].note["architecture"])
        return shape.model_copy(update={"classes": 0})

    def submodel_path(self, submodel: int) -> Path:
        """ONNX file of a sub-model."""
        return self.files[submodel].folder / SUBMODEL_FILE

    @property
    def fusion_path(self) -> Path:
        """ONNX file of the fusion."""
        return self.fusion.folder / FUSION_FILE


@dataclass(frozen=True)
class Fuse(Resumable):
    """Trains a fusion.

    Attributes:
        exported: of each sub-model, its features and its head, which the fusion starts from.
        teacher: the views that the features are of.
        views: their labels.
        validation: the validation images, in the order of the features.
        hidden: units of the hidden layer.
        how: epochs, learning rate and so on.
        seed: of the initial weights and the order of the images.
        device: what trains.
        refused: shares of the validation images, each for a probability that so many of them stay below.
    """

    STAGE: ClassVar[str] = "fuse"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "scipy", "timm", "torch")

    exported: tuple[Artifact, ...]
    teacher: tuple[Artifact, ...]
    views: Views
    validation: ImageSet
    hidden: int
    how: FusionTraining
    seed: int
    device: TorchDevice = unkeyed()
    refused: tuple[float, ...] = UNKNOWN_SHARES

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        outputs = open_views([view.folder for view in self.teacher])
        labels = np.concatenate([self.views.labels(view) for view in range(len(outputs))])
        held_out = torch.from_numpy(self._features(VALIDATION))
        trained = train_fusion(
            Samples(torch.from_numpy(self._features(FEATURES)), torch.from_numpy(labels)),
            torch.from_numpy(np.concatenate([view.logits for view in outputs])),
            Samples(held_out, torch.from_numpy(self.validation.labels)),
            heads=[load_head(artifact) for artifact in self.exported],
            hidden=self.hidden,
            how=self.how,
            seed=self.seed,
            device=self.device,
            checkpoint=resume,
            progress=progress,
        )
        fusion = trained.model
        everything = torch.ones(len(held_out), len(self.exported))
        with torch.inference_mode():
            temperature = fit_temperature(fusion(held_out, everything).numpy(), self.validation.labels)
        fusion.cool(temperature)
        onnx_file.export_fusion(fusion, held_out[:SAMPLES], folder / FUSION_FILE)
        with torch.inference_mode():
            logits = fusion(held_out, everything)
        probabilities = logits.softmax(dim=1).amax(dim=1).double().numpy()
        params = sum(parameter.numel() for parameter in fusion.parameters())
        return {
            "validation": accuracy(logits, self.validation),
            "params": params,
            "curve": trained.curve.note(),
            "temperature": temperature,
            "unknown_below": {str(share): float(np.quantile(probabilities, share)) for share in self.refused},
        }

    def _features(self, name: str) -> np.ndarray:
        """Features of all sub-models side by side, float32 `[images, sum of dims]`."""
        return np.concatenate([np.load(artifact.folder / name, mmap_mode="r") for artifact in self.exported], axis=1)


def fusion_views(config: BuildConfig, teacher: Teacher) -> int:
    """On how many views of the training set the fusion is trained."""
    return min(most_fusion_views(config), len(teacher.views))


def most_fusion_views(config: BuildConfig) -> int:
    """On how many views a fusion is trained where there are so many."""
    return FUSION_VIEWS if config.recover_epochs < TRAINED_EPOCHS else 1


def fuse_job(
    exported: Sequence[Artifact],
    teacher: Teacher,
    views: Views,
    count: int,
    *,
    validation: ImageSet,
    hidden: int,
    class_weights: tuple[float, ...] | None,
    seed: int,
    device: TorchDevice,
) -> Fuse:
    """The job that trains a fusion on the features over the first `count` views."""
    how = FusionTraining(
        Schedule(epochs=FUSION_EPOCHS, lr=1e-3, weight_decay=0.05, warmup_epochs=1.0, ema_decay=0.999),
        class_weights=class_weights,
    )
    return Fuse(tuple(exported), teacher.views[:count], views, validation, hidden, how, seed, device)
