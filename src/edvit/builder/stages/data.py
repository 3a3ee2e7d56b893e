"""Stage `data`: the data set is found, decoded once, and split into training and validation images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from edvit.builder import images
from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.job import Job, Note, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.family import family_of
from edvit.builder.models.origin import Facts, Origin, find_weights, pretrained_weights
from edvit.builder.models.weights import HeadOrder, head_order
from edvit.builder.options import Augment
from edvit.builder.train.augment import GLYPHS, NATURAL, SPECTROGRAMS, Augmentation, Views
from edvit.errors import ConfigError, DataError, WeightsError
from edvit.fleet import first_problem
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import GREY, FileSounds, LabelledImages, channels_of, read_split
from edvit.inputs.datasets.images import shorten
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import Pool
from edvit.units import counted

DEFAULT_MODELS = {"digits": "vit_digits_patch4_8"}
SOUNDS = ("audiofolder", "gtzan", "speech-commands")
AUGMENTATIONS = {"natural": NATURAL, "glyphs": GLYPHS, "spectrograms": SPECTROGRAMS, "none": Augmentation()}


@dataclass(frozen=True)
class Source:
    """What a build is made from: the data set, and how its images reach the model.

    Attributes:
        train: the training images, none of them decoded.
        preprocessing: from an image file to the model's input.
        model: the model's name.
        architecture: of the whole model, with an output for each class.
        origin: where the model's weights come from; None: it is trained from scratch.
        order: which outputs of their head stand for the classes; None: nothing says so, and they are taken as they
            stand.
        statistics: what mean and deviation were taken from, for messages.
    """

    train: LabelledImages
    preprocessing: Preprocessing
    model: str
    architecture: AnyArchitecture
    origin: Origin | None = None
    order: HeadOrder | None = None
    statistics: str = ""


@dataclass(frozen=True)
class Data:
    """Training and validation images, decoded."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet


@dataclass(frozen=True)
class Decode(Job):
    """Decodes and resizes every image of a data set.

    Attributes:
        stamps: a text for each image that changes when the image does.
        labels: class indices, int64 `[images]`.
        preprocessing: from an image file to the model's input.
        images: the data set.
    """

    STAGE: ClassVar[str] = "data"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("numpy", "pillow")

    stamps: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    preprocessing: Preprocessing
    images: LabelledImages = unkeyed()

    @classmethod
    def of(cls, images: LabelledImages, how: Preprocessing) -> Decode:
        """The job for all images of a data set."""
        stamps = tuple(images.stamp(index) for index in range(len(images)))
        return cls(stamps, np.asarray(images.labels, dtype=np.int64), how, images)

    def run(self, folder: Path, progress: Progress) -> Note:
        images.write_images(self.images, self.preprocessing, folder, progress)
        return {"images": len(self.images)}


def open_source(config: BuildConfig) -> Source:
    """Find the data and resolve the model's name, image size and normalisation.

    Raises:
        DataError, ModelError: as `read_split` and `Family.plan`.
        WeightsError: as `find_weights` and `head_order`.
    """
    origin = _origin(config)
    train = read_split(config.data, "train", config.data_root)
    if len(train.classes) < 2:
        raise DataError(f"{config.data}: has one class, {train.classes[0]!r}: there is nothing to tell apart or split")
    # Lists the test split and reads no image of it: that it is missing must not come out after hours of training.
    read_split(config.data, "test", config.data_root).with_classes(train.classes)
    facts = Facts() if origin is None else origin.facts
    name = config.model or facts.model or DEFAULT_MODELS.get(config.data)
    if name is None:
        raise DataError(f"--data {config.data} needs a --model, such as deit_tiny_patch16_224")
    channels = config.channels or channels_of(config.data)
    family = family_of(name)
    pixels = config.image_size or facts.image_size
    pool = config.pool or _pool(origin)
    shape = family.plan(name, image_size=pixels, channels=channels, classes=len(train.classes), pool=pool)
    # Weights of one name that are loaded under another of the same shape still want their own mean and deviation.
    learnt = facts.model or name
    known = family_of(learnt).input(learnt)
    preprocessing = Preprocessing(
        image_size=shape.image_size,
        channels=channels,
        interpolation=facts.interpolation or known.interpolation,
        mean=_per_channel("mean", config.mean, facts.mean or known.mean, channels),
        std=_per_channel("std", config.std, facts.std or known.std, channels),
        spectrogram=_spectrogram(config, train),
    )
    given = "/".join(f"--{what}" for what in ("mean", "std") if getattr(config, what) is not None)
    rest = "" if config.mean and config.std else facts.source if facts.mean and facts.std else learnt
    statistics = " and ".join(part for part in (given, rest) if part)
    return Source(train, preprocessing, name, shape, origin, _order(config, facts, train.classes), statistics)


def _origin(config: BuildConfig) -> Origin | None:
    """Where the base model's weights are; None: it is trained from scratch. Raises WeightsError."""
    if config.pretrained:
        return pretrained_weights(str(config.model))
    return None if config.weights is None else find_weights(config.weights)


def _pool(origin: Origin | None) -> Pool | None:
    """How the checkpoint says that it pools its tokens; None: it says nothing. Raises WeightsError."""
    said = None if origin is None else origin.facts.pool
    if origin is None or said is None:
        return None
    if said not in get_args(Pool):
        raise WeightsError(f"{origin.given}: pools its tokens by {said!r}; {', '.join(get_args(Pool))} can be split")
    return cast(Pool, said)


def _order(config: BuildConfig, facts: Facts, classes: tuple[str, ...]) -> HeadOrder | None:
    """Which output of the head stands for each class, where anything says so. Raises WeightsError."""
    path = config.class_names
    if path is None:
        return None if facts.classes is None else head_order(facts.classes, classes, facts.source)
    try:
        names = [line.strip() for line in path.expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    order = head_order(names, classes, str(path))
    if order is None:
        raise WeightsError(f"{path}: names none of the data's classes ({shorten(classes)})")
    return order


def _per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """A value for each channel; the default's mean where it has another number of them. Raises ConfigError."""
    if given is not None and len(given) not in (1, channels):
        raise ConfigError(f"--{name} takes 1 or {channels} numbers, one a channel, not {len(given)}")
    values = given or default
    return values if len(values) == channels else (sum(values) / len(values),) * channels


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


def decode(runner: Runner, source: Source, validation: float) -> Data:
    """Decode the training data once and split it into training and validation images.

    Args:
        validation: share of each class that is held out.

    Raises:
        DataError: an image cannot be read, or a class has fewer than two.
    """
    artifact = runner.make(Decode.of(source.train, source.preprocessing), "decoding")
    every = images.open_images(artifact.folder)
    counts = np.bincount(every.labels, minlength=len(source.train.classes))
    if counts.min() < 2:
        lacking = source.train.classes[int(counts.argmin())]
        raise DataError(f"class {lacking!r} has {counted(int(counts.min()), 'training image')}: at least 2 are needed")
    train, held_out = split_training(source.train, validation)
    return Data(source.train.classes, every.take(train), every.take(held_out))


def split_training(given: LabelledImages, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices for training and for validation: the authors' own choice, or `share` of each class."""
    labels, chosen = np.asarray(given.labels, dtype=np.int64), given.validation
    if chosen is None:
        return images.split_validation(labels, share)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


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
