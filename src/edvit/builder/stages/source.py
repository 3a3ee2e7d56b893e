"""What a build is made from: the data set, the model and its weights, and how images reach it; nothing is decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from edvit.builder.config import BuildConfig
from edvit.builder.models.class_names import HeadOrder, head_order
from edvit.builder.models.family import family_of
from edvit.builder.models.origin import CONFIG, Facts, Origin, find_weights, pretrained_weights
from edvit.builder.models.weights import has_fc_norm
from edvit.builder.options import NEEDS_OF_DATA
from edvit.errors import ConfigError, DataError, WeightsError
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import FileSounds, LabelledImages, channels_of, read_split
from edvit.inputs.datasets.images import Files, shorten
from edvit.inputs.datasets.unlabelled import read_unlabelled
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import Architecture, Pool
from edvit.validation import first_problem

DEFAULT_MODELS = {"digits": "vit_digits_patch4_8"}


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
        unlabelled: images that only the base model names, likewise; None: there are none.
        statistics: what mean and deviation were taken from, for messages.
        otherwise: what the weights' own images went through and those of this build do not, in words.
    """

    train: LabelledImages
    test: LabelledImages
    preprocessing: Preprocessing
    model: str
    architecture: AnyArchitecture
    origin: Origin | None = None
    order: HeadOrder | None = None
    unlabelled: Files | None = None
    statistics: str = ""
    otherwise: tuple[str, ...] = ()

    @property
    def other_names(self) -> str | None:
        """What the checkpoint says of its head where it names outputs and none of them is a class of the data."""
        facts = None if self.origin is None else self.origin.facts
        if facts is None or facts.classes is None or self.order is not None:
            return None
        return f"{facts.source} names {len(facts.classes)} outputs, none a class of the data: {shorten(facts.classes)}"

    @property
    def taken(self) -> str | None:
        """Which weights of the checkpoint were taken, where it holds several, such as `model, not swa_model`."""
        keys = () if self.origin is None else self.origin.facts.weights
        return f"{keys[0]}, not {' or '.join(keys[1:])}" if keys else None

    @property
    def remark(self) -> str | None:
        """What a user should know of how the weights' own images were prepared, in one line; None: the same as here."""
        if not self.otherwise:
            return None
        size, by = self.preprocessing.image_size, self.preprocessing.interpolation
        return (
            f"the weights' own images were {', '.join(self.otherwise)}; here they are scaled by {by} until they "
            f"cover {size} pixels, and their middle is taken"
        )


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
    _check_needs(config, train)
    unlabelled = _unlabelled(config.unlabeled, train, test)
    for part in (train, test, unlabelled):
        if part is not None:
            part.check_decodable()
    facts = Facts() if origin is None else origin.facts
    name = config.model or facts.model or DEFAULT_MODELS.get(config.data)
    if name is None and origin is not None and facts.source == CONFIG:
        raise ConfigError(f"{origin.given}: {CONFIG} names no model of timm's; give --model")
    if name is None:
        raise DataError(f"--data {config.data} needs a --model, such as deit_tiny_patch16_224")
    channels = config.channels or channels_of(config.data)
    family = family_of(name)
    pixels = config.image_size or facts.image_size
    pool = config.pool or _pool(origin)
    shape = family.plan(
        name,
        image_size=pixels,
        channels=channels,
        classes=len(train.classes),
        pool=pool,
        fc_norm=None if origin is None or pool in (None, "token", "token+avg") else has_fc_norm(origin),
    )
    if origin is not None and isinstance(shape, Architecture) and facts.heads not in (None, shape.heads):
        raise WeightsError(f"{origin.given}: {facts.source} says {facts.heads} heads, and {name} has {shape.heads}")
    # Weights of one name that are loaded under another of the same shape still want their own mean and deviation.
    # A shape alone is of several names, of which the user may know the right one.
    learnt = facts.model if facts.model and (facts.named or config.model is None) else name
    known = family_of(learnt).input(learnt)
    preprocessing = Preprocessing(
        image_size=shape.image_size,
        channels=channels,
        interpolation=facts.interpolation or known.interpolation,
        mean=_per_channel("mean", config.mean, facts.mean or known.mean, channels),
        std=_per_channel("std", config.std, facts.std or known.std, channels),
        background=config.background,
        spectrogram=_spectrogram(config, train),
    )
    given = "/".join(f"--{what}" for what in ("mean", "std") if getattr(config, what) is not None)
    said = (facts.processor or facts.source) if facts.mean and facts.std else learnt
    rest = "" if config.mean and config.std else said
    statistics = " and ".join(part for part in (given, rest) if part)
    order = _order(config, facts, train.classes)
    square = None if facts.pixels is None else (facts.pixels, facts.pixels)
    other_size = config.image_size is None and square not in (None, shape.image_size)
    shown = (f"shown at {facts.pixels} pixels (--img-size {facts.pixels} does so)",) if other_size else ()
    return Source(
        train, test, preprocessing, name, shape, origin, order, unlabelled, statistics, (*facts.otherwise, *shown)
    )


def _origin(config: BuildConfig) -> Origin | None:
    """Where the base model's weights are; None: it is trained from scratch. Raises WeightsError."""
    if config.pretrained:
        return pretrained_weights(str(config.model))
    return None if config.weights is None else find_weights(config.weights)


def _unlabelled(root: Path | None, train: LabelledImages, test: LabelledImages) -> Files | None:
    """The images of `--unlabeled` that are in no split of the data set. Raises DataError."""
    if root is None:
        return None
    known = [part for part in (train, test) if isinstance(part, Files)]
    return read_unlabelled(root.expanduser(), known, sounds=isinstance(train, FileSounds))


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
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    order = head_order(names, classes, str(path))
    if order is None:
        raise WeightsError(
            f"{path}: {_form_of(names)}names none of the data's classes ({shorten(classes)}); it has to be a text file "
            "of one name a line, in the order of the head's outputs"
        )
    return order


def _form_of(lines: list[str]) -> str:
    """What a file of class names is written in, where that is another form in common use, for messages."""
    if lines and lines[0].startswith(("[", "{")):
        return "is JSON, and so "
    if lines and all(re.match(r"\d+\s*[\s:,=]\s*\S", line) for line in lines):
        return "has numbers before the names, and so "
    return ""


def _per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """A value for each channel; the default's mean where it has another number of them. Raises ConfigError."""
    if given is not None and len(given) not in (1, channels):
        raise ConfigError(f"--{name} takes 1 or {channels} numbers, one a channel, not {len(given)}")
    return spread(given or default, channels)


def spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A value for each channel: these, or their mean where they are of another number of channels."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _check_needs(config: BuildConfig, train: LabelledImages) -> None:
    """Whether the options that were given change something, the data being what they are. Raises ConfigError."""
    known = {"sounds": isinstance(train, FileSounds), "validated": train.validation is not None}
    for name, value in config.given().items():
        need = NEEDS_OF_DATA.get(name)
        if need is not None and value is not None and not need.met(known):
            raise ConfigError(f"--{name.replace('_', '-')}: {need.otherwise}")


def _spectrogram(config: BuildConfig, train: LabelledImages) -> Spectrogram | None:
    """How sounds become images; None where the data set is one of images. Raises ConfigError, DataError."""
    asked = {"seconds": config.seconds, "sample_rate": config.sample_rate, "mels": config.mels}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(train, FileSounds):
        return None
    if config.seconds is None or config.sample_rate is None:
        seconds, sample_rate = train.typical()
        given = {"seconds": seconds, "sample_rate": sample_rate, **given}
    try:
        return Spectrogram.at(given.pop("sample_rate"), **given)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
