"""Stage `data`: the data set is found, decoded once, and split into training and validation images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edvit.builder import images
from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.options import Augment, BadFiles
from edvit.builder.stages.leaks import leaks
from edvit.builder.stages.source import Source
from edvit.builder.train.augment import GLYPHS, NATURAL, SPECTROGRAMS, Augmentation, Views
from edvit.builder.unlabelled import WithUnlabelled
from edvit.errors import DataError
from edvit.inputs.datasets import GREY, LabelledImages
from edvit.inputs.datasets.images import shorten
from edvit.inputs.datasets.splits import grouped_split, why_none
from edvit.inputs.preprocess import CLIPPED, SILENT, TRANSPARENT, Preprocessing
from edvit.units import counted

DEFAULT_MODELS = {"digits": "vit_digits_patch4_8"}
SOUNDS = ("audiofolder", "gtzan", "speech-commands")
AUGMENTATIONS = {"natural": NATURAL, "glyphs": GLYPHS, "spectrograms": SPECTROGRAMS, "none": Augmentation()}


@dataclass(frozen=True)
class Data:
    """Training and validation images, decoded; and what a user should know of how the data were read and cut."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    unlabelled: ImageSet | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What makes its accuracies mean less than they say."""


@dataclass(frozen=True)
class Decode(Resumable):
    """Decodes and resizes every image of a data set.

    Attributes:
        contents: the digest of each image. Names do not count: a copy of the data set is the same data set.
        labels: class indices, int64 `[images]`.
        preprocessing: from an image file to the model's input.
        images: the data set.
    """

    STAGE: ClassVar[str] = "data"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("numpy", "pillow")

    contents: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    preprocessing: Preprocessing
    images: LabelledImages = unkeyed()

    @classmethod
    def of(cls, images: LabelledImages, how: Preprocessing) -> Decode:
        """The job for all images of a data set."""
        return cls(images.contents, np.asarray(images.labels, dtype=np.int64), how, images)

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        written = images.write_images(self.images, self.preprocessing, folder, progress, resume)
        return {"images": len(self.images), "bad": list(written.bad), "remarks": dict(written.remarks)}


def _check_counts(given: LabelledImages, share: float) -> None:
    """Whether every class has images to train on, and some images are left for validation, told from labels alone.

    Raises:
        DataError: a class has no images to train on, or there is none for validation.
    """
    labels, classes = np.asarray(given.labels, dtype=np.int64), given.classes
    train, held_out = split_training(given, share)
    trained = np.bincount(labels[train], minlength=len(classes))
    if trained.min() == 0:
        raise DataError(
            f"class {classes[int(trained.argmin())]!r} has no training images: add some or remove the class"
        )
    if len(held_out) == 0 and given.groups is not None:
        raise DataError(
            f"--split-by: in the training data {why_none(given.groups, labels)}, so none can be held out for "
            "validation; give more groups, or leave it out"
        )
    if len(held_out) == 0:
        raise DataError("no class has two different training images, and none is left for validation: add images")


def decode(runner: Runner, source: Source, validation: float, bad_files: BadFiles = "stop") -> Data:
    """Decode training and test data once, and split the former into training and validation images.

    The test images are decoded here too, so that a damaged one comes out before hours of training, and so that a test
    split of training images is refused (see `leaks`).

    Args:
        validation: share of each class that is held out.
        bad_files: what to do where files cannot be read: stop and name them, or leave them out.

    Raises:
        DataError: a class has too few images, which is told before any is decoded; images cannot be read; or, without
            these, a class has none to train on.
    """
    _check_counts(source.train, validation)
    parts = [part for part in (source.train, source.test, source.unlabelled) if part is not None]
    made = [runner.make(Decode.of(part, source.preprocessing), "decoding") for part in parts]
    bad = [
        f"{part.name(row)}: {text}"
        for part, artifact in zip(parts, made, strict=True)
        for row, text in zip(images.unreadable(artifact.folder), artifact.note["bad"], strict=True)
    ]
    if bad and bad_files == "stop":
        raise DataError(_describe_bad(bad))
    every = images.open_images(made[0].folder)
    train, held_out = (np.intersect1d(part, every.rows) for part in split_training(source.train, validation))
    labels, classes = np.asarray(source.train.labels, dtype=np.int64), source.train.classes
    trained = np.bincount(labels[train], minlength=len(classes))
    if trained.min() == 0 or len(held_out) == 0:
        lacking = f"class {classes[int(trained.argmin())]!r}" if trained.min() == 0 else "the validation split"
        raise DataError(f"{lacking} has no image left without the {counted(len(bad), 'file')} that cannot be read")
    tested = images.open_images(made[1].folder)
    if len(tested) == 0:
        raise DataError("no test image can be read")
    warnings = leaks(source.train, source.test, every.rows.tolist(), tested.rows.tolist())
    whole = ImageSet(every.folder, np.arange(len(labels)))
    notes = _notes(source, every.rows, held_out, [artifact.note for artifact in made], bad)
    unlabelled = images.open_images(made[2].folder) if source.unlabelled is not None else None
    return Data(classes, whole.take(train), whole.take(held_out), unlabelled, notes, warnings)


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
    source: Source,
    read: npt.NDArray[np.int64],
    held_out: npt.NDArray[np.int64],
    decoded: Sequence[Mapping[str, Any]],
    bad: Sequence[str],
) -> tuple[str, ...]:
    """What a user should know of the data, in the order in which it matters."""
    train, test, how = source.train, source.test, source.preprocessing
    notes = [*train.notes, *(f"test: {note}" for note in test.notes if note not in train.notes)]
    if source.unlabelled is not None:
        notes += source.unlabelled.notes
    if train.groups is not None:
        notes.append(_describe_groups(train, test, held_out))
    different = len({train.contents[row] for row in read})
    if different < len(read) and train.validation is None:
        noun = "sound" if how.spectrogram is not None else "image"
        notes.append(
            f"{different:,} of {counted(len(read), f'training {noun}')} are different, and copies stay on one side of "
            "the cut"
        )
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
        chosen = np.flatnonzero(grouped_split(given.groups, labels, given.copies, share))
    if chosen is None:
        return images.split_validation(labels, given.copies, share)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def class_weights(config: BuildConfig, data: Data) -> tuple[float, ...] | None:
    """What a training image of each class counts, by scikit-learn's rule; None: all the same."""
    if config.class_weights is None:
        return None
    from sklearn.utils.class_weight import compute_class_weight  # brings an OpenMP library of its own

    labels = data.train.labels
    weights = compute_class_weight(config.class_weights, classes=np.arange(len(data.classes)), y=labels)
    return tuple(weights.tolist())


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
    seen = data.train if data.unlabelled is None else WithUnlabelled(data.train, data.unlabelled)
    return Views(seen, stronger, config.seed + 1, config.resolved_mix)
