"""Stage `data`: the data set is found, decoded once, and split into training and validation images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from edvit.builder.options import Augment, BadFiles
from edvit.builder.train.augment import GLYPHS, NATURAL, SPECTROGRAMS, Augmentation, Views
from edvit.errors import ConfigError, DataError, WeightsError
from edvit.fleet import first_problem
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import GREY, FileSounds, LabelledImages, channels_of, read_split
from edvit.inputs.datasets.images import shorten
from edvit.inputs.datasets.splits import grouped_split
from edvit.inputs.preprocess import CLIPPED, SILENT, TRANSPARENT, Preprocessing
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
        test: the test images, likewise, labelled as the training images are.
        preprocessing: from an image file to the model's input.
        model: the model's name.
        architecture: of the whole model, with an output for each class.
        origin: where the model's weights come from; None: it is trained from scratch.
        order: which outputs of their head stand for the classes; None: nothing says so, and they are taken as they
            stand.
        statistics: what mean and deviation were taken from, for messages.
    """

    train: LabelledImages
    test: LabelledImages
    preprocessing: Preprocessing
    model: str
    architecture: AnyArchitecture
    origin: Origin | None = None
    order: HeadOrder | None = None
    statistics: str = ""


@dataclass(frozen=True)
class Data:
    """Training and validation images, decoded; and what a user should know of how the data were read and cut."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    notes: tuple[str, ...] = ()


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
        written = images.write_images(self.images, self.preprocessing, folder, progress)
        return {"images": len(self.images), "bad": list(written.bad), "remarks": dict(written.remarks)}


def open_source(config: BuildConfig) -> Source:
    """Find the data and resolve the model's name, image size and normalisation.

    Raises:
        DataError, ModelError: as `read_split` and `Family.plan`.
        WeightsError: as `find_weights` and `head_order`.
    """
    origin = _origin(config)
    train = read_split(config.data, "train", config.data_root, config.split_by)
    if len(train.classes) < 2:
        raise DataError(f"{config.data}: has one class, {train.classes[0]!r}: there is nothing to tell apart or split")
    # Lists the test split and reads no image of it: that it is missing must not come out after hours of training.
    test = read_split(config.data, "test", config.data_root, config.split_by).with_classes(train.classes)
    for part in (train, test):
        part.check_decodable()
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
        background=_background(config, train),
        spectrogram=_spectrogram(config, train),
    )
    given = "/".join(f"--{what}" for what in ("mean", "std") if getattr(config, what) is not None)
    rest = "" if config.mean and config.std else facts.source if facts.mean and facts.std else learnt
    statistics = " and ".join(part for part in (given, rest) if part)
    return Source(train, test, preprocessing, name, shape, origin, _order(config, facts, train.classes), statistics)


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


def _check_counts(given: LabelledImages, share: float) -> None:
    """Whether every class has images to train on, and some images are left for validation, told from labels alone.

    Raises:
        DataError: a class has no images to train on, or there is none for validation.
        ConfigError: the authors chose a validation split, and groups are to be kept together as well.
    """
    if given.validation is not None and given.groups is not None:
        raise ConfigError("--split-by: the data set has a validation split of its own, which is kept; leave it out")
    labels, classes = np.asarray(given.labels, dtype=np.int64), given.classes
    train, held_out = split_training(given, share)
    trained = np.bincount(labels[train], minlength=len(classes))
    if trained.min() == 0:
        raise DataError(
            f"class {classes[int(trained.argmin())]!r} has no training images: add some or remove the class"
        )
    if len(held_out) == 0 and given.groups is not None:
        raise DataError(
            "--split-by: no group can be held out for validation, as each class has images of one group only; give "
            "more groups, or leave it out"
        )
    if len(held_out) == 0:
        raise DataError("every class has one training image, and none is left for validation: add images")


def _background(config: BuildConfig, train: LabelledImages) -> str | None:
    if config.background is not None and isinstance(train, FileSounds):
        raise ConfigError(f"--background is for images, and {config.data} holds sounds")
    return config.background


def _spectrogram(config: BuildConfig, train: LabelledImages) -> Spectrogram | None:
    """How sounds become images; None where the data set is one of images. Raises ConfigError, DataError."""
    asked = {"seconds": config.seconds, "sample_rate": config.sample_rate, "mels": config.mels}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(train, FileSounds):
        if given:
            raise ConfigError(f"--{next(iter(given)).replace('_', '-')} is for sounds, and {config.data} holds images")
        return None
    if config.seconds is None or config.sample_rate is None:
        seconds, sample_rate = train.typical()
        given = {"seconds": seconds, "sample_rate": sample_rate, **given}
    try:
        return Spectrogram.at(given.pop("sample_rate"), **given)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None


def decode(runner: Runner, source: Source, validation: float, bad_files: BadFiles = "stop") -> Data:
    """Decode training and test data once, and split the former into training and validation images.

    The test images are decoded here too, so that a damaged one comes out before hours of training.

    Args:
        validation: share of each class that is held out.
        bad_files: what to do where files cannot be read: stop and name them, or leave them out.

    Raises:
        DataError: a class has too few images, which is told before any is decoded; images cannot be read; or, without
            these, a class has none to train on.
        ConfigError: the authors chose a validation split, and groups are to be kept together as well.
    """
    _check_counts(source.train, validation)
    made = [runner.make(Decode.of(part, source.preprocessing), "decoding") for part in (source.train, source.test)]
    bad = [text for artifact in made for text in artifact.note.get("bad", [])]
    if bad and bad_files == "stop":
        raise DataError(_describe_bad(bad))
    every = images.open_images(made[0].folder)
    train, held_out = (np.intersect1d(part, every.rows) for part in split_training(source.train, validation))
    labels, classes = np.asarray(source.train.labels, dtype=np.int64), source.train.classes
    trained = np.bincount(labels[train], minlength=len(classes))
    if trained.min() == 0 or len(held_out) == 0:
        lacking = f"class {classes[int(trained.argmin())]!r}" if trained.min() == 0 else "the validation split"
        raise DataError(f"{lacking} has no image left without the {counted(len(bad), 'file')} that cannot be read")
    if len(images.open_images(made[1].folder)) == 0:
        raise DataError("no test image can be read")
    whole = ImageSet(every.folder, np.arange(len(labels)))
    notes = _notes(source, held_out, [artifact.note for artifact in made], bad)
    return Data(classes, whole.take(train), whole.take(held_out), notes)


def _describe_bad(bad: Sequence[str]) -> str:
    """One line that names the first ten."""
    if len(bad) == 1:
        return bad[0]
    first = "; ".join(text.partition("; replace or remove")[0] for text in bad[:10])
    more = f"; and {len(bad) - 10:,} more" if len(bad) > 10 else ""
    return (
        f"{counted(len(bad), 'file')} cannot be read: {first}{more}. Replace or remove them, or give --bad-files skip "
        "to leave them out"
    )


def _notes(
    source: Source, held_out: npt.NDArray[np.int64], decoded: Sequence[Mapping[str, Any]], bad: Sequence[str]
) -> tuple[str, ...]:
    """What a user should know of the data, in the order in which it matters."""
    train, test, how = source.train, source.test, source.preprocessing
    notes = [*train.notes, *(f"test: {note}" for note in test.notes if note not in train.notes)]
    if train.groups is not None:
        notes.append(_describe_groups(train, test, held_out))
    validated = np.bincount(np.asarray(train.labels)[held_out], minlength=len(train.classes))
    without = [name for name, count in zip(train.classes, validated, strict=True) if count == 0]
    if without:
        notes.append(f"no validation images of {shorten(without)}")
    if bad:
        named = [text.partition(": ")[0] for text in bad]
        notes.append(f"{counted(len(bad), 'file')} that cannot be read left out: {shorten(named)}")
    remarks = sum((Counter(note.get("remarks", {})) for note in decoded), Counter[str]())
    if remarks[TRANSPARENT] and how.background is None:
        notes.append(
            f"{counted(remarks[TRANSPARENT], 'image')} with transparency, which is dropped as timm and torchvision do; "
            "--background white puts them on white"
        )
    if how.spectrogram is not None:
        rates = {rate: count for rate, count in remarks.items() if rate.endswith(" Hz")}
        if len(rates) > 1:
            mixture = ", ".join(f"{count:,} at {rate}" for rate, count in sorted(rates.items(), key=lambda r: -r[1]))
            notes.append(f"sample rates differ ({mixture}): all are resampled to {how.spectrogram.sample_rate:,} Hz")
        notes += [f"{counted(remarks[kind], 'clip')} {kind}" for kind in (SILENT, CLIPPED) if remarks[kind]]
    return tuple(notes)


def _describe_groups(train: LabelledImages, test: LabelledImages, held_out: npt.NDArray[np.int64]) -> str:
    """How `--split-by` cut."""
    groups = np.asarray(train.groups, dtype=object)
    of_validation = set(groups[held_out])
    text = f"validation: {len(of_validation):,} of {counted(len(set(groups)), 'group')} of --split-by"
    both = set(groups) & set(test.groups or ())
    if both:
        text += f"; {counted(len(both), 'group')} in both training and test data, so test accuracy may be too high"
    return text


def split_training(given: LabelledImages, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices for training and for validation: the authors' own choice, or `share` of each class, in whole groups."""
    labels, chosen = np.asarray(given.labels, dtype=np.int64), given.validation
    if chosen is None and given.groups is not None:
        chosen = np.flatnonzero(grouped_split(given.groups, labels, share))
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
