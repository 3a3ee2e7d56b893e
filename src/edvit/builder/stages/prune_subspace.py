"""Stages `statistics` and `prune`, by subspace: one pass of statistics of the base model, then closed-form cuts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.config import BuildConfig
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.job import Job, Note, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.family import AnyWidths, Kept, vit_widths
from edvit.builder.options import Fit
from edvit.builder.stages.base import Base
from edvit.builder.stages.data import Data, split_training
from edvit.builder.stages.prune import Group, calibration_rows, save_pruned
from edvit.builder.stages.source import Source
from edvit.builder.subspace import cut as cutting
from edvit.builder.subspace import statistics
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.cut import Cut, CutGroup, Options, cut
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.widths import fit_groups
from edvit.builder.train.device import TorchDevice
from edvit.builder.vit import backbone
from edvit.errors import ConfigError
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.vit import Architecture, Widths

SUMS = "sums.safetensors"


@dataclass(frozen=True)
class Measure(Job):
    """Collects the statistics of the rotated base model that all cuts are made from.

    Attributes:
        base: the base model.
        images: the calibration set.
        bins: the bin of each class, in pairs.
        gradients: whether the Fisher weight is wanted.
        seed: of the draws.
        rotated: the base model, loaded and rotated.
        calibration: the calibration set, loaded.
        device: what it runs on.
    """

    STAGE: ClassVar[str] = "statistics"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    images: ImageSet
    bins: tuple[tuple[int, int], ...]
    gradients: bool
    seed: int
    rotated: VisionTransformer = unkeyed()
    calibration: Calibration = unkeyed()
    device: TorchDevice = unkeyed()

    def run(self, folder: Path, progress: Progress) -> Note:
        bins = dict(self.bins)
        of_image = [bins[label] for label in self.calibration.labels.tolist()]
        with self.device.default():
            sums = statistics.collect(
                self.rotated, self.calibration, of_image, gradients=self.gradients, seed=self.seed, progress=progress
            )
        sums.save(folder / SUMS)
        return {"images": len(self.images)}


@dataclass(frozen=True)
class KeepCut(Job):
    """Keeps one group's cut. The cuts of all groups are made together, from the same states of the base model."""

    STAGE: ClassVar[str] = "prune"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    base: Artifact
    images: ImageSet
    classes: tuple[int, ...]
    widths: AnyWidths
    options: Options
    fit: Fit
    seed: int
    validation: ImageSet
    preprocessing: Preprocessing
    device: TorchDevice = unkeyed()
    made: Cut | None = unkeyed()

    def run(self, folder: Path, progress: Progress) -> Note:
        made = self.made
        if made is None:
            raise ValueError("there is no cut to keep")
        kept = Kept(attention=made.after_attention, ffn=made.after_ffn, energy=made.energy)
        return save_pruned(
            folder,
            made.model.cpu(),
            made.rotation.cpu(),
            kept,
            preprocessing=self.preprocessing,
            validation=self.validation,
            device=self.device,
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
    options = options_of(config)
    parts = _parts(groups, len(data.classes))
    rows = np.unique(
        np.concatenate([calibration_rows(data.train, part.classes, config.calibration, config.seed) for part in parts])
    )
    images = data.train.take(rows)
    jobs = [
        KeepCut(
            base=base.artifact,
            images=images,
            classes=group.classes,
            widths=group.widths,
            options=options,
            fit=config.resolved_widths,
            seed=config.seed,
            validation=data.validation,
            preprocessing=preprocessing,
            device=device,
            made=None,
        )
        for group in groups
    ]
    # A cut's key does not name the statistics that it was made by: only a build that redoes these makes it again.
    done = [None if runner.work.forces(Measure.STAGE) else runner.work.find(job) for job in jobs]
    missing = [index for index, artifact in enumerate(done) if artifact is None]
    if missing:
        cuts = _cut(runner, base, images, [jobs[index] for index in missing], parts)
        for index, made in zip(missing, cuts, strict=True):
            done[index] = runner.keep(replace(jobs[index], made=made))
    return tuple(artifact for artifact in done if artifact is not None)


def _cut(
    runner: Runner,
    base: Base,
    images: ImageSet,
    jobs: Sequence[KeepCut],
    parts: Sequence[Group],
) -> list[Cut]:
    """The cuts that jobs are to keep, made together."""
    options, seed, device, preprocessing = jobs[0].options, jobs[0].seed, jobs[0].device, jobs[0].preprocessing
    rotated = to_rms(base.model).to(device.name)
    calibration = Calibration(images, preprocessing.mean, preprocessing.std)
    gradients = options.fisher is not None
    bins = _bins(backbone.describe(rotated), parts, gradients=gradients)
    job = Measure(
        base=base.artifact,
        images=images,
        bins=tuple(sorted(bins.items())),
        gradients=gradients,
        seed=seed,
        rotated=rotated,
        calibration=calibration,
        device=device,
    )
    measured = runner.make(job, "statistics of the base model", line="prune")
    sums = device.move(statistics.Sums.load(measured.folder / SUMS))
    to_cut = [
        CutGroup(job.classes, vit_widths(job.widths), bins=tuple(sorted({bins[label] for label in job.classes})))
        for job in jobs
    ]
    if jobs[0].fit == "fitted":
        with runner.report.bar("prune", "widths") as bar, device.default():
            to_cut = fit_groups(rotated, sums, calibration, to_cut, options, seed=seed, progress=bar)
    with runner.report.bar("prune", "subspaces") as bar, device.default():
        return list(cut(rotated, sums, calibration, to_cut, options, seed=seed, progress=bar))


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
    train, _ = split_training(source.train, config.validation)
    there = np.bincount(np.asarray(source.train.labels)[train], minlength=len(source.train.classes))

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
