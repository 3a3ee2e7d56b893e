"""Stages `statistics` and `prune`, by subspace: one pass of statistics of the base model, then closed-form cuts."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models import checkpoint
from edvit.builder.models.family import Kept, vit_widths
from edvit.builder.stages.base import Base
from edvit.builder.stages.data import Data, split_training
from edvit.builder.stages.prune import Group, calibration_rows, noted, save_cut
from edvit.builder.stages.source import Source
from edvit.builder.subspace import cut as cutting
from edvit.builder.subspace import statistics
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.cut import CutGroup, Options, cut
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.widths import fit_group
from edvit.builder.train.device import TorchDevice
from edvit.builder.vit import backbone
from edvit.errors import ConfigError
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.vit import Architecture, Widths

SUMS = "sums.safetensors"


@dataclass(frozen=True)
class Rotated:
    """The rotated base model, made when a job first needs it.

    Attributes:
        base: the base model.
        device: where it is then.
    """

    base: Base
    device: TorchDevice

    @cached_property
    def model(self) -> VisionTransformer:
        return to_rms(self.base.model).to(self.device.name)


@dataclass(frozen=True)
class Measure(Resumable):
    """Collects the statistics of the rotated base model that all cuts are made from.

    Attributes:
        base: the base model.
        images: the calibration set.
        bins: the bin of each class, in pairs.
        gradients: whether the Fisher weight is wanted.
        seed: of the draws.
        rotated: the base model, loaded.
        calibration: the calibration set, loaded.
    """

    STAGE: ClassVar[str] = "statistics"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    images: ImageSet
    bins: tuple[tuple[int, int], ...]
    gradients: bool
    seed: int
    rotated: Rotated = unkeyed()
    calibration: Calibration = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        bins = dict(self.bins)
        of_image = [bins[label] for label in self.calibration.labels.tolist()]
        with self.rotated.device.default():
            sums = statistics.collect(
                self.rotated.model,
                self.calibration,
                of_image,
                gradients=self.gradients,
                seed=self.seed,
                checkpoint=resume,
                progress=progress,
            )
        sums.save(folder / SUMS)
        return {"images": len(self.images)}


@dataclass(frozen=True)
class FitGroup(Resumable):
    """Fits the widths of one group.

    Attributes:
        measured: the statistics.
        base: the base model.
        images: the calibration set.
        group: the group, with the widths that it may take.
        options: of the cut.
        seed: of the draws.
        rotated: the base model, loaded.
        calibration: the calibration set, loaded.
    """

    STAGE: ClassVar[str] = "prune"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    measured: Artifact
    base: Artifact
    images: ImageSet
    group: CutGroup
    options: Options
    seed: int
    rotated: Rotated = unkeyed()
    calibration: Calibration = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        device = self.rotated.device
        with device.default():
            fitted = fit_group(
                self.rotated.model,
                load_sums(self.measured, device),
                self.calibration,
                self.group,
                self.options,
                seed=self.seed,
                checkpoint=resume,
                progress=progress,
            )
        return {"widths": fitted.widths.model_dump(mode="json")}


@dataclass(frozen=True)
class CutGroups(Resumable):
    """Cuts all groups together, from the same states of the base model.

    Attributes:
        measured: the statistics.
        base: the base model.
        images: the calibration set.
        groups: the groups and their widths.
        options: of the cut.
        seed: of the draws.
        rotated: the base model, loaded.
        calibration: the calibration set, loaded.
    """

    STAGE: ClassVar[str] = "prune"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    measured: Artifact
    base: Artifact
    images: ImageSet
    groups: tuple[CutGroup, ...]
    options: Options
    seed: int
    rotated: Rotated = unkeyed()
    calibration: Calibration = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        device = self.rotated.device
        with device.default():
            cuts = cut(
                self.rotated.model,
                load_sums(self.measured, device),
                self.calibration,
                self.groups,
                self.options,
                seed=self.seed,
                checkpoint=resume,
                progress=progress,
            )
        kept = []
        for index, made in enumerate(cuts):
            of_group = folder / str(index)
            of_group.mkdir()
            save_cut(of_group, made.model.cpu(), made.rotation.cpu())
            kept.append(asdict(Kept(attention=made.after_attention, ffn=made.after_ffn, energy=made.energy)))
        return {"kept": kept}


@dataclass(frozen=True)
class KeepCut(Resumable):
    """Keeps one group's cut, with its accuracy on validation images.

    Attributes:
        cuts: of all groups.
        index: which of them.
        validation: the validation images.
        preprocessing: how images reach it.
        device: what runs it.
    """

    STAGE: ClassVar[str] = "prune"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    cuts: Artifact
    index: int
    validation: ImageSet
    preprocessing: Preprocessing
    device: TorchDevice = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        shutil.copytree(self.cuts.folder / str(self.index), folder, dirs_exist_ok=True)
        return noted(
            checkpoint.load_model(folder / checkpoint.WEIGHTS),
            Kept(**self.cuts.note["kept"][self.index]),
            preprocessing=self.preprocessing,
            validation=self.validation,
            device=self.device,
            resume=resume,
        )


def prune(
    runner: Runner,
    config: BuildConfig,
    data: Data,
    base: Base,
    groups: Sequence[Group],
    *,
    preprocessing: Preprocessing,
    device: TorchDevice,
) -> tuple[Artifact, ...]:
    """A pruned model for each group, with a head over all classes and not trained any further.

    Raises:
        ModelError: the base model's residual stream cannot be rotated.
        DataError: a class has no calibration images.
    """
    options, seed = options_of(config), config.seed
    parts, gradients = _parts(groups, len(data.classes)), options.fisher is not None
    rows = np.unique(
        np.concatenate([calibration_rows(data.train, part.classes, config.calibration, seed) for part in parts])
    )
    images = data.train.take(rows)
    rotated, calibration = Rotated(base, device), Calibration(images, preprocessing.mean, preprocessing.std)
    bins = _bins(backbone.describe(base.model).rotated_form(), parts, gradients=gradients)
    measure = Measure(base.artifact, images, tuple(sorted(bins.items())), gradients, seed, rotated, calibration)
    measured = runner.make(measure, "statistics of the base model", line="prune")
    to_cut = [
        CutGroup(group.classes, vit_widths(group.widths), bins=tuple(sorted({bins[label] for label in group.classes})))
        for group in groups
    ]
    if config.resolved_widths == "fitted":
        fitted = [
            runner.make(
                FitGroup(measured, base.artifact, images, group, options, seed, rotated, calibration),
                f"widths of group {index + 1} of {len(to_cut)}",
                line="prune",
            )
            for index, group in enumerate(to_cut)
        ]
        to_cut = [
            replace(group, widths=Widths.model_validate(artifact.note["widths"]))
            for group, artifact in zip(to_cut, fitted, strict=True)
        ]
    job = CutGroups(measured, base.artifact, images, tuple(to_cut), options, seed, rotated, calibration)
    cuts = runner.make(job, "subspaces", line="prune")
    return tuple(
        runner.make(KeepCut(cuts, index, data.validation, preprocessing, device), "validation")
        for index in range(len(groups))
    )


def disk_bytes(config: BuildConfig, source: Source, groups: Sequence[Group]) -> int:
    """Bytes that statistics, and the checkpoints of them and of a cut, take at most; told from labels and widths."""
    architecture, options = source.architecture, options_of(config)
    if not (config.rotated and isinstance(architecture, Architecture)):
        return 0
    rotated, gradients = architecture.rotated_form(), options.fisher is not None
    bins = len(set(_bins(rotated, _parts(groups, architecture.classes), gradients=gradients).values()))
    counts, images = _own_images(groups, _training_counts(config, source), config.calibration)
    streams = min(
        cutting.STATE_LIMIT_BYTES, cutting.largest_state_bytes(rotated, counts, images, options) * len(groups)
    )
    return 3 * statistics.sums_bytes(rotated, bins, gradients=gradients) + 2 * streams


def load_sums(measured: Artifact, device: TorchDevice) -> statistics.Sums:
    """The statistics, on a device."""
    return device.move(statistics.Sums.load(measured.folder / SUMS))


def options_of(config: BuildConfig) -> Options:
    """What a cut is to do, less the steps that were asked to be left out."""
    without = set(config.without)
    return Options(
        rotate="rotation" not in without,
        fisher=None if {"rotation", "fisher"} & without else config.fisher,
        low_rank="factors" not in without,
        refit_readers="readers" not in without,
        refit_writers="writers" not in without,
        correct_errors="correction" not in without,
        foreign=config.foreign,
    )


def check_calibration(config: BuildConfig, source: Source, groups: Sequence[Group]) -> None:
    """Whether what pruning by subspace keeps of the calibration images fits into memory, told from labels and widths.

    Raises:
        ConfigError: the streams of one group do not, and the message says with how many images they would; or the
            statistics of all groups do not.
    """
    architecture, options = source.architecture, options_of(config)
    if not (config.rotated and isinstance(architecture, Architecture)):
        return
    parts, gradients = _parts(groups, len(source.train.classes)), options.fisher is not None
    statistics.check_size(architecture.rotated_form(), len(parts), gradients=gradients)
    there = _training_counts(config, source)

    def fits(calibration: int) -> bool:
        counts, images = _own_images(groups, there, calibration)
        needed = cutting.largest_state_bytes(architecture, counts, images, options)
        return needed <= cutting.STATE_LIMIT_BYTES

    if fits(config.calibration):
        return
    limit = f"take more than the limit of {cutting.STATE_LIMIT_BYTES / 1024**3:.1f} GiB"
    most = bisect_left(range(1, config.calibration), True, key=lambda count: not fits(count))
    if not most:
        raise ConfigError(
            f"the base model's states of one calibration image of each class {limit}; give a smaller --img-size"
        )
    hint = " or --no-baseline" if len(groups) > 1 and config.baseline else ""
    raise ConfigError(
        f"the base model's states of --calibration {config.calibration} images {limit}; give --calibration {most}{hint}"
    )


def _training_counts(config: BuildConfig, source: Source) -> npt.NDArray[np.int64]:
    """Training images of each class."""
    train, _ = split_training(source.train, config.validation)
    return np.bincount(np.asarray(source.train.labels)[train], minlength=len(source.train.classes))


def _own_images(
    groups: Sequence[Group], there: npt.NDArray[np.int64], calibration: int
) -> tuple[list[tuple[int, Widths]], int]:
    """How many calibration images of its own each group has, with its widths, and how many all have together.

    Args:
        groups: as for `prune`.
        there: training images of each class.
        calibration: images of each group but that of all classes.
    """

    def own(group: Group) -> int:
        return min(max(calibration, len(group.classes)), int(there[list(group.classes)].sum()))

    images = sum(map(own, _parts(groups, len(there))))
    counts = [images if len(group.classes) == len(there) else own(group) for group in groups]
    return [(count, vit_widths(group.widths)) for count, group in zip(counts, groups, strict=True)], images


def _parts(groups: Sequence[Group], classes: int) -> Sequence[Group]:
    """The groups without that of all classes, N = 1, which has the others' images and statistics together."""
    return [group for group in groups if len(group.classes) < classes] or groups


def _bins(architecture: Architecture, parts: Sequence[Group], *, gradients: bool) -> dict[int, int]:
    """The bin of each class in the statistics: its own, or its group's where those by class would take too much."""
    needed = statistics.sums_bytes(architecture, architecture.classes, gradients=gradients)
    by_class = needed <= statistics.SUMS_LIMIT_BYTES
    return {label: label if by_class else index for index, part in enumerate(parts) for label in sorted(part.classes)}
