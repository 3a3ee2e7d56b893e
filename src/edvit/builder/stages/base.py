"""Stage `base`: the base model is loaded, and trained where it does not know the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress, torch_threads
from edvit.builder.jobs.runner import Runner
from edvit.builder.models import checkpoint
from edvit.builder.models.family import Classifier, describe, family_of
from edvit.builder.models.weights import load_weights
from edvit.builder.stages.data import Data, Source, augmentation
from edvit.builder.train.augment import Views
from edvit.builder.train.base import BaseTraining, accuracy, logits_of, train_base
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.training import Schedule
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import sha256_of
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import model_cost
from edvit.shape.conv import is_convnet

SCRATCH_EPOCHS = 60
SMALL_FLOPS = 50_000_000
"""A model of fewer operations is trained on one thread."""
FINE_TUNE_EPOCHS = 6
FINE_TUNE_STEPS = 1000
"""Steps of fine-tuning, at least: an epoch of a small data set has few."""


@dataclass(frozen=True)
class Base:
    """The trained base model."""

    artifact: Artifact
    model: Classifier
    extractor: FeatureExtractor


@dataclass(frozen=True)
class TrainBase(Resumable):
    """Trains the base model.

    Attributes:
        name: the model's.
        weights: SHA-256 of the user's weights file; None: from scratch.
        views: what it is trained on.
        validation: what its accuracy is measured on.
        preprocessing: how images reach it.
        how: epochs, learning rate and so on.
        seed: of its initial weights and the order of the images.
        amp: whether mixed precision was asked for; None: it follows from the machine.
        model: with the weights that it starts from.
        device: what trains.
        threads: of PyTorch. Another number gives other roundings, which is no reason to train for an hour again.
    """

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    name: str
    weights: str | None
    views: Views
    validation: ImageSet
    preprocessing: Preprocessing
    how: BaseTraining
    seed: int
    amp: bool | None
    model: Classifier = unkeyed()
    device: TorchDevice = unkeyed()
    threads: int = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        with torch_threads(self.threads):
            trained = train_base(
                self.model,
                self.views,
                self.how,
                mean=mean,
                std=std,
                seed=self.seed,
                device=self.device,
                checkpoint=resume,
                progress=progress,
            )
            checkpoint.save_model(folder / checkpoint.WEIGHTS, trained)
            logits = logits_of(FeatureExtractor(trained, mean, std), self.validation, device=self.device)
        schedule = self.how.schedule
        return {"validation": accuracy(logits, self.validation), "epochs": schedule.epochs, "lr": schedule.lr}


def train(runner: Runner, config: BuildConfig, source: Source, data: Data, device: TorchDevice) -> Base:
    """Load the base model, and train it where it does not know the classes.

    Raises:
        ModelError, WeightsError: as `load_weights`.
        BuildError: training diverged.
    """
    how_seen = source.preprocessing
    torch.manual_seed(config.seed)
    if config.weights is None:
        model, knows = family_of(source.model).create(source.architecture), False
    else:
        model, knows = load_weights(
            config.weights,
            source.model,
            image_size=how_seen.image_size,
            channels=how_seen.channels,
            classes=len(data.classes),
        )
    # The matrix products of a very small model are too small to share out between threads.
    threads = 1 if model_cost(describe(model)).flops < SMALL_FLOPS else torch.get_num_threads()
    job = TrainBase(
        name=source.model,
        weights=sha256_of(config.weights) if config.weights else None,
        views=Views(data.train, augmentation(config), config.seed),
        validation=data.validation,
        preprocessing=how_seen,
        how=base_training(config, source.model, len(data.train), knows=knows),
        seed=config.seed,
        amp=config.amp,
        model=model,
        device=device,
        threads=threads,
    )
    artifact = runner.make(job, source.model)
    extractor = load_extractor(artifact, how_seen)
    return Base(artifact, extractor.model, extractor)


def base_training(config: BuildConfig, model: str, images: int, *, knows: bool) -> BaseTraining:
    """How the base model is trained.

    Args:
        model: its name.
        images: training images.
        knows: whether its weights know the classes already.
    """
    scratch = config.weights is None
    default = SCRATCH_EPOCHS if scratch else 0 if knows else fine_tune_epochs(images, config.batch_size)
    return BaseTraining(
        Schedule(
            epochs=default if config.base_epochs is None else config.base_epochs,
            lr=config.base_lr or (1e-3 if scratch else 5e-4),
            warmup_epochs=3.0 if scratch else 0.5,
            ema_decay=0.99 if scratch else None,
            layer_decay=None if scratch or is_convnet(model) else 0.75,
        ),
        batch_size=32 if scratch else config.batch_size,
    )


def fine_tune_epochs(images: int, batch_size: int) -> int:
    """How long a pretrained model is trained on a data set of so many images, unless the user says."""
    return max(FINE_TUNE_EPOCHS, math.ceil(FINE_TUNE_STEPS / max(1, images // batch_size)))


def weights_path(artifact: Artifact) -> Path:
    """Where a result that is a model keeps it."""
    return artifact.folder / checkpoint.WEIGHTS


def load_extractor(artifact: Artifact, how: Preprocessing) -> FeatureExtractor:
    """A finished base or sub-model as it runs on a device, with its head for all classes still on it."""
    return FeatureExtractor(checkpoint.load_model(weights_path(artifact)), how.mean, how.std).eval()
