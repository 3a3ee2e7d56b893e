"""The first stages of a build: the data, the base model, and its outputs as teacher."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from edvit.builder import images
from edvit.builder.config import Augment, BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs import parallel
from edvit.builder.jobs.artifacts import Artifact, Stage, WorkFolder
from edvit.builder.jobs.jobs import run_stages
from edvit.builder.jobs.progress import Reporter
from edvit.builder.models import checkpoint
from edvit.builder.models.family import Classifier, describe, family_of
from edvit.builder.models.weights import load_weights
from edvit.builder.subspace.rms import to_rms
from edvit.builder.train import base, teacher
from edvit.builder.train.augment import GLYPHS, NATURAL, SPECTROGRAMS, Augmentation, Views
from edvit.builder.train.base import BaseTraining, train_base
from edvit.builder.train.device import Device, devices
from edvit.builder.train.teacher import TeacherView
from edvit.builder.train.training import Schedule
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import sha256_of
from edvit.errors import ConfigError, DataError
from edvit.fleet import first_problem
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import GREY, FileSounds, LabelledImages, channels_of, read_split
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import model_cost
from edvit.shape.conv import AnyArchitecture, is_convnet
from edvit.units import counted

DEFAULT_MODELS = {"digits": "vit_digits_patch4_8"}
SOUNDS = ("audiofolder", "gtzan", "speech-commands")
SCRATCH_EPOCHS = 60
SMALL_FLOPS = 50_000_000
FINE_TUNE_EPOCHS = 6
FINE_TUNE_STEPS = 1000
"""At least so many, where an epoch of a small data set has few."""
WEIGHTS = "model.safetensors"
AUGMENTATIONS = {"natural": NATURAL, "glyphs": GLYPHS, "spectrograms": SPECTROGRAMS, "none": Augmentation()}


@dataclass(frozen=True)
class Context:
    """What every stage needs: the settings, where results are kept, whom to tell, and where jobs run."""

    config: BuildConfig
    source: Source
    work: WorkFolder
    report: Reporter
    pool: parallel.Pool

    @property
    def devices(self) -> Sequence[Device]:
        """What trains; independent jobs take turns on them. Raises ConfigError where PyTorch sees none."""
        return devices(self.config.device, self.config.amp)


@dataclass(frozen=True)
class Source:
    """What a build is made from: the data set, and how its images reach the model."""

    train: LabelledImages
    preprocessing: Preprocessing
    model: str
    architecture: AnyArchitecture
    """Of the whole model, with an output for each class."""


@dataclass(frozen=True)
class Data:
    """Training and validation images, decoded."""

    artifact: Artifact
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet

    @property
    def digest(self) -> str:
        """Of pixels, labels and which of them are held out: what a stage depends on that reads them."""
        rows = (self.train.rows.tobytes(), self.validation.rows.tobytes())
        return hashlib.sha256(b"".join((self.artifact.digest.encode(), *rows))).hexdigest()


@dataclass(frozen=True)
class Base:
    """The trained base model."""

    artifact: Artifact
    model: Classifier
    extractor: FeatureExtractor


def open_source(config: BuildConfig) -> Source:
    """Find the data and resolve the model's name, image size and normalisation.

    Raises:
        DataError, ModelError: as `read_split` and `Family.plan`.
    """
    train = read_split(config.data, "train", config.data_root)
    if len(train.classes) < 2:
        raise DataError(f"{config.data}: has one class, {train.classes[0]!r}: there is nothing to tell apart or split")
    # Lists the test split and reads no image of it: that it is missing must not come out after hours of training.
    read_split(config.data, "test", config.data_root).with_classes(train.classes)
    name = config.model or DEFAULT_MODELS.get(config.data)
    if name is None:
        raise DataError(f"--data {config.data} needs a --model, such as deit_tiny_patch16_224")
    channels = config.channels or channels_of(config.data)
    family = family_of(name)
    shape = family.plan(name, image_size=config.image_size, channels=channels, classes=len(train.classes))
    known = family.input(name)
    mean, std = known.mean, known.std
    if len(mean) != channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    preprocessing = Preprocessing(
        image_size=shape.image_size,
        channels=channels,
        interpolation=known.interpolation,
        mean=mean,
        std=std,
        spectrogram=_spectrogram(config, train),
    )
    return Source(train, preprocessing, name, shape)


def _spectrogram(config: BuildConfig, train: LabelledImages) -> Spectrogram | None:
    """How sounds become images; None where the data set is one of images. Raises ConfigError, DataError."""
    asked = {"seconds": config.seconds, "sample_rate": config.sample_rate, "mels": config.mels}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(train, FileSounds):
        if given:
            raise ConfigError(f"--{next(iter(given)).replace('_', '-')} is for sounds, and {config.data} holds images")
        return None
    if config.seconds is None:
        given["seconds"] = train.typical_seconds()
    try:
        return Spectrogram(**given)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None


def prepare_data(context: Context) -> Data:
    """Decode the training data once and cut the validation split from it."""
    config, source = context.config, context.source
    stage = Stage(
        "data",
        {
            "spec": config.data,
            "images": [source.train.stamp(i) for i in range(len(source.train))],
            "labels": source.train.labels.tolist(),
            "preprocessing": source.preprocessing.model_dump(mode="json"),
        },
    )
    with context.report.bar("data", "decoding") as bar:
        artifact = context.work.make(stage, lambda folder: _decode(source.train, source.preprocessing, folder, bar))
    every = images.open_images(artifact.folder)
    counts = np.bincount(every.labels, minlength=len(source.train.classes))
    if counts.min() < 2:
        lacking = source.train.classes[int(counts.argmin())]
        raise DataError(f"class {lacking!r} has {counted(int(counts.min()), 'training image')}: at least 2 are needed")
    train, validation = split_training(source.train, config.validation)
    return Data(artifact, source.train.classes, every.take(train), every.take(validation))


def split_training(given: LabelledImages, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices for training and for validation: the authors' own choice, or `share` of each class."""
    labels, chosen = np.asarray(given.labels, dtype=np.int64), given.validation
    if chosen is None:
        return images.split_validation(labels, share)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _decode(source: LabelledImages, how: Preprocessing, folder: Path, bar: parallel.Progress) -> dict[str, Any]:
    images.decode_images(source, how, folder, bar)
    return {"images": len(source)}


def prepare_base(context: Context, data: Data) -> Base:
    """Load the base model, and train it where it does not know the classes."""
    config, source = context.config, context.source
    torch.manual_seed(config.seed)
    size, channels, classes = source.preprocessing.image_size, source.preprocessing.channels, len(data.classes)
    if config.weights is None:
        model, knows = family_of(source.model).create(source.architecture), False
    else:
        model, knows = load_weights(config.weights, source.model, image_size=size, channels=channels, classes=classes)
    scratch = config.weights is None
    default = SCRATCH_EPOCHS if scratch else 0 if knows else fine_tune_epochs(len(data.train), config.batch_size)
    epochs = default if config.base_epochs is None else config.base_epochs
    how = BaseTraining(
        Schedule(
            epochs=epochs,
            lr=config.base_lr or (1e-3 if scratch else 5e-4),
            warmup_epochs=3.0 if scratch else 0.5,
            ema_decay=0.99 if scratch else None,
            layer_decay=None if scratch or is_convnet(source.model) else 0.75,
        ),
        batch_size=32 if scratch else config.batch_size,
    )
    # The matrix products of a very small model are too small to share out between threads. Their number is no part of
    # the stage: another one gives other roundings, and that is no reason to train for an hour again.
    threads = 1 if model_cost(describe(model)).flops < SMALL_FLOPS else torch.get_num_threads()
    stage = Stage(
        "base",
        {
            "data": data.digest,
            "model": source.model,
            "weights": sha256_of(config.weights) if config.weights else None,
            "training": asdict(how),
            "augment": asdict(augmentation(config)),
            "seed": config.seed,
            **config.training_precision,
        },
    )
    how_seen = source.preprocessing
    with context.report.bar("base", source.model) as bar, parallel.torch_threads(threads):

        def fill(folder: Path) -> dict[str, Any]:
            views = Views(data.train, augmentation(config), config.seed)
            trained = train_base(
                model,
                views,
                how,
                mean=how_seen.mean,
                std=how_seen.std,
                seed=config.seed,
                device=context.devices[0],
                progress=bar,
            )
            checkpoint.save_model(folder / WEIGHTS, trained)
            extractor = FeatureExtractor(trained, how_seen.mean, how_seen.std)
            logits = base.logits_of(extractor, data.validation, device=context.devices[0])
            validation = base.accuracy(logits, data.validation)
            return {"validation": validation, "epochs": epochs, "lr": how.schedule.lr}

        artifact = context.work.make(stage, fill)
    extractor = load_extractor(artifact, how_seen)
    return Base(artifact, extractor.model, extractor)


def fine_tune_epochs(images: int, batch_size: int) -> int:
    """How long a pretrained model is trained on a data set of so many images, unless the user says."""
    return max(FINE_TUNE_EPOCHS, math.ceil(FINE_TUNE_STEPS / max(1, images // batch_size)))


def weights_path(artifact: Artifact) -> Path:
    """Where a base or sub-model stage keeps its model."""
    return artifact.folder / WEIGHTS


def augmentation(config: BuildConfig) -> Augmentation:
    """The augmentation asked for, or the one that suits the data."""
    return AUGMENTATIONS[config.augment or default_augment(config.data)]


def default_augment(data: str) -> Augment:
    """`glyphs` for the data sets of digits, letters and the like, `natural` for other images."""
    if data.partition(":")[0] in SOUNDS:
        return "spectrograms"
    return "glyphs" if data in GREY else "natural"


def training_views(config: BuildConfig, data: Data) -> Views:
    """What the teacher, the sub-models and the fusion see of the training set; not the views the base learned on."""
    stronger = augmentation(config).times(config.resolved_strength)
    return Views(data.train, stronger, config.seed + 1, config.resolved_mix)


@dataclass(frozen=True)
class Teacher:
    """The base model's outputs on the views of the training set."""

    views: tuple[Artifact, ...]
    blocks: tuple[int, ...]
    """After which the residual stream was kept."""

    def open(self) -> tuple[TeacherView, ...]:
        """Map the outputs of every view."""
        return teacher.open_views([view.folder for view in self.views])


@dataclass(frozen=True)
class _TeachJob:
    stage: Stage
    scratch: Path
    base: Artifact
    rotated: bool
    preprocessing: Preprocessing
    views: Views
    view: int
    blocks: tuple[int, ...]
    device: Device


def run_teacher(context: Context, data: Data, trained: Base) -> Teacher:
    """The base model's outputs on every view, for all sub-models."""
    config = context.config
    views = training_views(config, data)
    count = config.resolved_views
    shape = describe(trained.model)
    blocks = teacher.stream_blocks(shape, len(data.train), count) if config.recover_epochs else ()
    jobs = []
    turns = cycle(context.devices)
    for view in range(count):
        settings = {
            "data": data.digest,
            "base": trained.artifact.digest,
            "rotated": config.rotated,
            "view": view,
            "augment": asdict(views.augmentation),
            "seed": views.seed,
            "blocks": blocks,
            "mix": views.mix,
            **config.training_precision,
        }
        jobs.append(
            _TeachJob(
                stage=Stage("teacher", settings),
                scratch=Path(),
                base=trained.artifact,
                rotated=config.rotated,
                preprocessing=context.source.preprocessing,
                views=views,
                view=view,
                blocks=blocks,
                device=next(turns),
            )
        )
    with context.report.bar("teacher", counted(count, "view")) as bar:
        return Teacher(run_stages(context.work, _teach, jobs, pool=context.pool, progress=bar), blocks)


def _teach(job: _TeachJob, progress: parallel.Progress) -> dict[str, Any]:
    extractor = load_extractor(job.base, job.preprocessing)
    if job.rotated:
        extractor.model = to_rms(extractor.model)
    teacher.write_view(
        extractor, job.views, job.view, job.scratch, blocks=job.blocks, device=job.device, progress=progress
    )
    return {}


def load_extractor(artifact: Artifact, how: Preprocessing) -> FeatureExtractor:
    """A finished base or sub-model as it runs on a device, with its head for all classes still on it."""
    return FeatureExtractor(checkpoint.load_model(weights_path(artifact)), how.mean, how.std).eval()
