"""Stage `base`: the base model is loaded, and trained where it does not know the classes."""

from __future__ import annotations

import hashlib
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
from edvit.builder.stages.data import Data, augmentation, class_weights
from edvit.builder.stages.question import QuestionBase, questioned
from edvit.builder.stages.source import Source
from edvit.builder.train.augment import Views
from edvit.builder.train.base import BaseTraining, accuracy, logits_of, train_base
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.training import Schedule
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.digest import sha256_of
from edvit.errors import ConfigError, WeightsError
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import model_cost
from edvit.shape.any import AnyArchitecture
from edvit.shape.conv import is_convnet

SCRATCH_EPOCHS = 60
SMALL_FLOPS = 50_000_000
"""A model of fewer operations is trained on one thread."""
FINE_TUNE_EPOCHS = 6
FINE_TUNE_STEPS = 1000
"""Steps of fine-tuning, at least: an epoch of a small data set has few."""


@dataclass(frozen=True)
class Start:
    """What the base model starts from: the weights of its checkpoint, or freshly drawn ones.

    Attributes:
        model: on the CPU.
        knows: whether its head came from the checkpoint.
        digest: SHA-256 of the checkpoint, hex; None: from scratch.
    """

    model: Classifier
    knows: bool
    digest: str | None


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
        architecture: the model's.
        weights: SHA-256 of the user's weights; None: from scratch.
        head: rows of their head, one for each class; None: as they stand.
        views: what it is trained on.
        validation: what its accuracy is measured on.
        preprocessing: how images reach it.
        how: epochs, learning rate and so on.
        seed: of its initial weights and the order of the images.
        amp: whether mixed precision was asked for; None: it follows from the machine.
        model: with the weights that it starts from.
        new_head: whether these had no head for the classes.
        device: what trains.
        threads: of PyTorch. Another number gives other roundings, which is no reason to train for an hour again.
    """

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    architecture: AnyArchitecture
    weights: str | None
    head: tuple[int, ...] | None
    views: Views
    validation: ImageSet
    preprocessing: Preprocessing
    how: BaseTraining
    seed: int
    amp: bool | None
    model: Classifier = unkeyed()
    new_head: bool = unkeyed()
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
            checkpoint.save_model(folder / checkpoint.WEIGHTS, trained.model)
            logits = logits_of(
                FeatureExtractor(trained.model, mean, std),
                self.validation,
                device=self.device,
                checkpoint=Checkpoint.part_of(resume, "validation"),
            )
        schedule = self.how.schedule
        return {
            "validation": accuracy(logits, self.validation),
            "new_head": self.new_head,
            "epochs": schedule.epochs,
            "lr": schedule.lr,
            "curve": trained.curve.note(),
        }


def load(config: BuildConfig, source: Source) -> Start:
    """The base model before it is trained.

    Raises:
        WeightsError: as `load_weights`; or the head is new, and nothing is to train it.
        ConfigError: the model is new, and nothing is to train it; or it is not trained, and a learning rate is given.
    """
    origin = source.origin
    torch.manual_seed(config.seed)
    if origin is None and config.base_epochs == 0:
        raise ConfigError("--base-epochs 0 leaves a model without weights as it was drawn; give --weights, or epochs")
    if origin is None:
        return Start(family_of(source.model).create(source.architecture), knows=False, digest=None)
    model, knows = load_weights(origin, source.architecture, source.order)
    if not knows and config.base_epochs == 0:
        why = "" if source.other_names is None else f" ({source.other_names}; --class-names FILE names them anew)"
        raise WeightsError(
            f"{origin.given}: has no head for the {len(source.train.classes)} classes of the data{why}, and "
            "--base-epochs 0 trains none; leave it out, or give the number of epochs"
        )
    if knows and config.base_epochs is None and config.base_lr is not None:
        raise ConfigError(
            "--base-lr: the weights know the classes, so the base model is not trained; give --base-epochs as well, or "
            "leave it out"
        )
    digest = hashlib.sha256("".join(map(sha256_of, origin.files)).encode()).hexdigest()
    return Start(model, knows, sha256_of(origin.files[0]) if len(origin.files) == 1 else digest)


def train(
    runner: Runner, config: BuildConfig, source: Source, data: Data, *, start: Start, device: TorchDevice
) -> Base:
    """Question the base model where it is taken as given, and train it where it is not.

    Raises:
        WeightsError: the weights do not know the classes as they should; the message names the likely cause.
        BuildError: training diverged.
    """
    how_seen, model = source.preprocessing, start.model
    # The matrix products of a very small model are too small to share out between threads.
    threads = 1 if model_cost(describe(model)).flops < SMALL_FLOPS else torch.get_num_threads()
    how = base_training(config, source, data, knows=start.knows)
    head = None if source.order is None else source.order.rows
    if how.schedule.epochs == 0 and source.origin is not None:
        if source.remark is not None:
            runner.report.note("base", source.remark)
        asked = QuestionBase(
            architecture=source.architecture,
            weights=start.digest,
            head=head,
            images=questioned(data),
            classes=data.classes,
            preprocessing=how_seen,
            statistics=source.statistics,
            order=None if source.order is None else source.order.source,
            taken=source.taken,
            accuracy=source.origin.facts.accuracy,
            other_names=source.other_names,
            model=model,
            device=device,
            threads=threads,
        )
        runner.make(asked, f"{source.model}, questioned")
    job = TrainBase(
        architecture=source.architecture,
        weights=start.digest,
        head=head,
        views=Views(data.train, augmentation(config), config.seed),
        validation=data.validation,
        preprocessing=how_seen,
        how=how,
        seed=config.seed,
        amp=config.amp,
        model=model,
        new_head=not start.knows,
        device=device,
        threads=threads,
    )
    artifact = runner.make(job, source.model)
    extractor = load_extractor(artifact, how_seen)
    return Base(artifact, extractor.model, extractor)


def base_training(config: BuildConfig, source: Source, data: Data, *, knows: bool) -> BaseTraining:
    """How the base model is trained.

    Args:
        knows: whether its weights know the classes already.
    """
    scratch = source.origin is None
    default = SCRATCH_EPOCHS if scratch else 0 if knows else fine_tune_epochs(len(data.train), config.batch_size)
    return BaseTraining(
        Schedule(
            epochs=default if config.base_epochs is None else config.base_epochs,
            lr=config.base_lr or (1e-3 if scratch else 5e-4),
            warmup_epochs=3.0 if scratch else 0.5,
            ema_decay=0.99 if scratch else None,
            layer_decay=None if scratch or is_convnet(source.model) else 0.75,
        ),
        batch_size=32 if scratch else config.batch_size,
        class_weights=class_weights(config, data),
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
