"""Pruning: from the base model to one narrow sub-model for each class group, by subspace or by channels.

Either way a pruned model comes with its rotation `Q` `[base dim, dim]`: its residual stream stands in for the base's
times `Q`. By channels `Q` is a selection of columns of the identity.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.config import BuildConfig, Fit
from edvit.builder.images import ImageSet
from edvit.builder.jobs import parallel
from edvit.builder.jobs.artifacts import Artifact, Stage
from edvit.builder.jobs.jobs import run_stages
from edvit.builder.models import checkpoint
from edvit.builder.models.family import AnyWidths, Classifier, Kept, Scored, Scoring, family_for, vit_widths
from edvit.builder.stages.prepare import WEIGHTS, Base, Context, Data, Source, split_training, weights_path
from edvit.builder.subspace import cut as cutting
from edvit.builder.subspace import statistics
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.cut import Cut, CutGroup, Options, cut
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.widths import fit_groups
from edvit.builder.train import base
from edvit.builder.train.device import CPU, Device
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.builder.vit.importance import UNSEEING
from edvit.builder.vit.memory import images_within
from edvit.errors import ConfigError
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.conv import is_convnet
from edvit.shape.vit import Architecture, Widths

ROTATION = "rotation.safetensors"
SCORES = "scores.safetensors"
SUMS = "sums.safetensors"
SCORED_AT_ONCE = 32
"""Images, unless memory is limited. How many does not change a score but for rounding, and is no part of its stage."""
SCORED_BY_STAGE = 64
"""Images of a group whose scores are one stage: as much as a stopped build loses, 12 minutes of a ViT-L."""


@dataclass(frozen=True)
class Group:
    """What one sub-model is to be.

    Attributes:
        classes: the class group.
        widths: what they are to be, or the budget that they are fitted to.
    """

    classes: tuple[int, ...]
    widths: AnyWidths


def prune(context: Context, data: Data, trained: Base, groups: Sequence[Group]) -> tuple[Artifact, ...]:
    """A pruned model for each group, with a head over all classes and not trained any further.

    Raises:
        ModelError: by subspace, the base model's residual stream cannot be rotated.
        DataError: by subspace, a class has no calibration images.
    """
    if context.config.rotated:
        return _by_subspace(context, data, trained, groups)
    return _by_channels(context, data, trained, groups)


def load_rotation(pruned: Artifact) -> Tensor:
    """`Q` of a pruned model, float32 `[base dim, dim]`."""
    rotation: Tensor = load_file(pruned.folder / ROTATION)["rotation"]
    return rotation


def load_kept(pruned: Artifact) -> Kept:
    """What pruning left."""
    return Kept(**pruned.record()["kept"])


def _save(folder: Path, model: Classifier, rotation: Tensor) -> None:
    checkpoint.save_model(folder / WEIGHTS, model)
    save_file({"rotation": rotation.float().contiguous()}, folder / ROTATION)


def _note(
    model: Classifier, kept: Kept, how: Preprocessing, validation: ImageSet, device: Device = CPU
) -> dict[str, Any]:
    logits = base.logits_of(FeatureExtractor(model, how.mean, how.std), validation, device=device)
    return {"validation": base.accuracy(logits, validation), "kept": asdict(kept)}


def calibration_rows(data: Data, classes: Sequence[int], count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` training images drawn evenly from these classes, or all there are, ascending; at least one of each."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(data.train.of_classes((label,))) for label in classes]
    # Every class's first image, then every class's second, ...
    turns = np.concatenate([np.arange(len(rows)) for rows in drawn])
    order = np.argsort(turns, kind="stable")[: max(count, len(classes))]
    return np.sort(np.concatenate(drawn)[order])


# --- by subspace -------------------------------------------------------------------------------------------


def subspace_options(config: BuildConfig) -> Options:
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
    architecture, options = source.architecture, subspace_options(config)
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
    limit = f"the limit of {cutting.STATE_LIMIT_BYTES / 1024**3:.1f} GiB for the base model's states of them"
    most = bisect_left(range(1, config.calibration), True, key=lambda count: not fits(count))
    if not most:
        raise ConfigError(f"one calibration image of each class passes {limit}; give a smaller --img-size")
    hint = " or --no-baseline" if len(groups) > 1 and config.baseline else ""
    raise ConfigError(f"--calibration {config.calibration} passes {limit}; give --calibration {most}{hint}")


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


def _by_subspace(context: Context, data: Data, trained: Base, groups: Sequence[Group]) -> tuple[Artifact, ...]:
    config, work, how = context.config, context.work, context.source.preprocessing
    options = subspace_options(config)
    parts = _parts(groups, len(data.classes))
    rows = np.unique(
        np.concatenate([calibration_rows(data, part.classes, config.calibration, config.seed) for part in parts])
    )
    shared = {
        "data": data.digest,
        "base": trained.artifact.digest,
        "images": rows.tolist(),
        "seed": config.seed,
    }
    stages = [
        Stage(
            "pruned",
            {
                **shared,
                "classes": group.classes,
                "widths": group.widths.model_dump(mode="json"),
                "options": {**asdict(options), "units": "energy"},  # as in every work folder that there is
                "fitted": config.resolved_widths,
            },
        )
        for group in groups
    ]
    # What is cut does not name the statistics that it was cut by: only a build that redoes these asks for them again.
    done = [None if work.forces("statistics") else work.find(stage) for stage in stages]
    missing = [i for i, artifact in enumerate(done) if artifact is None]
    if missing:
        device = context.devices[0]
        rotated = to_rms(trained.model).to(device.name)
        calibration = Calibration(data.train.take(rows), how.mean, how.std)
        gradients = options.fisher is not None
        bins = _bins(backbone.describe(rotated), parts, gradients=gradients)
        measured = _statistics(context, rotated, calibration, {**shared, "gradients": gradients, "bins": bins})
        sums = device.move(statistics.Sums.load(measured.folder / SUMS))
        to_cut = [
            CutGroup(
                group.classes, vit_widths(group.widths), bins=tuple(sorted({bins[label] for label in group.classes}))
            )
            for group in (groups[i] for i in missing)
        ]
        if config.resolved_widths == "fitted":
            with context.report.bar("prune", "widths") as bar, device.default():
                to_cut = fit_groups(rotated, sums, calibration, to_cut, options, seed=config.seed, progress=bar)
        with context.report.bar("prune", "subspaces") as bar, device.default():
            cuts = cut(
                rotated,
                sums,
                calibration,
                to_cut,
                options,
                seed=config.seed,
                progress=bar,
            )
        for i, made in zip(missing, cuts, strict=True):
            done[i] = work.remake(stages[i], partial(_keep_cut, made, how, data.validation, device))
    return tuple(artifact for artifact in done if artifact is not None)


def _keep_cut(made: Cut, how: Preprocessing, validation: ImageSet, device: Device, folder: Path) -> dict[str, Any]:
    _save(folder, made.model.cpu(), made.rotation.cpu())
    kept = Kept(attention=made.after_attention, ffn=made.after_ffn, energy=made.energy)
    return _note(made.model, kept, how, validation, device)


def _statistics(
    context: Context,
    rotated: VisionTransformer,
    calibration: Calibration,
    settings: dict[str, Any],
) -> Artifact:
    bins, gradients, seed = (settings[name] for name in ("bins", "gradients", "seed"))

    def fill(folder: Path) -> dict[str, Any]:
        of_image = [bins[label] for label in calibration.labels.tolist()]
        with context.report.bar("prune", "statistics of the base model") as bar, context.devices[0].default():
            sums = statistics.collect(rotated, calibration, of_image, gradients=gradients, seed=seed, progress=bar)
        sums.save(folder / SUMS)
        return {"images": len(calibration.images)}

    return context.work.make(Stage("statistics", settings), fill)


def _parts(groups: Sequence[Group], classes: int) -> Sequence[Group]:
    """The groups without that of all classes, N = 1, which has the others' images and statistics together."""
    return [group for group in groups if len(group.classes) < classes] or groups


def _bins(architecture: Architecture, parts: Sequence[Group], *, gradients: bool) -> dict[int, int]:
    """The bin of each class in the statistics: its own, or its group's where those by class would take too much."""
    needed = statistics.sums_bytes(architecture, architecture.classes, gradients=gradients)
    by_class = needed <= statistics.SUMS_LIMIT_BYTES
    return {label: label if by_class else index for index, part in enumerate(parts) for label in sorted(part.classes)}


# --- by channels -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ScoreJob:
    stage: Stage
    scratch: Path
    base: Path
    images: ImageSet
    preprocessing: Preprocessing
    how: Scoring


@dataclass(frozen=True)
class _SelectJob:
    stage: Stage
    scratch: Path
    base: Path
    scores: tuple[Scored, ...]
    widths: AnyWidths
    fit: Fit
    validation: ImageSet
    preprocessing: Preprocessing


def _by_channels(context: Context, data: Data, trained: Base, groups: Sequence[Group]) -> tuple[Artifact, ...]:
    config, whole = context.config, weights_path(trained.artifact)
    scored = _scores(context, data, trained, groups)
    jobs = [
        _SelectJob(
            stage=Stage(
                "pruned",
                {
                    "data": data.digest,
                    "base": trained.artifact.digest,
                    "scores": [part.digest for part in parts],
                    "widths": group.widths.model_dump(mode="json"),
                    **({"fitted": config.resolved_widths} if is_convnet(context.source.model) else {}),
                },
            ),
            scratch=Path(),
            base=whole,
            scores=tuple(Scored(part.folder / SCORES, part.record()["images"]) for part in parts),
            widths=group.widths,
            fit=config.resolved_widths,
            validation=data.validation,
            preprocessing=context.source.preprocessing,
        )
        for group, parts in zip(groups, scored, strict=True)
    ]
    with context.report.bar("prune", "channels") as bar:
        return run_stages(context.work, _select_job, jobs, pool=context.pool, progress=bar)


def _scores(context: Context, data: Data, trained: Base, groups: Sequence[Group]) -> tuple[tuple[Artifact, ...], ...]:
    """Importance of every component for each group, on part after part of its images; other widths use the same."""
    config = context.config
    criterion = config.resolved_criterion
    # Fisher-KL ranks whole heads poorly, and there are few of them.
    exact_heads = config.attention == "heads" and criterion == "fisher-kl"
    of_group = [_parts_to_score(data, group, config) for group in groups]
    batch_size = SCORED_AT_ONCE
    if config.memory_limit_mb is not None:
        each = config.memory_limit_mb * 1_000_000 // min(config.workers, sum(map(len, of_group)))
        batch_size = min(batch_size, images_within(each, backbone.describe(trained.model)))
    jobs = [
        _ScoreJob(
            stage=Stage(
                "scores",
                {
                    "data": data.digest,
                    "base": trained.artifact.digest,
                    "classes": group.classes,
                    "criterion": criterion,
                    "exact_heads": exact_heads,
                    "images": rows.tolist(),
                    "seed": config.seed + part,
                },
            ),
            scratch=Path(),
            base=weights_path(trained.artifact),
            images=data.train.take(rows),
            preprocessing=context.source.preprocessing,
            how=Scoring(criterion, batch_size, exact_heads, config.seed + part),
        )
        for group, parts in zip(groups, of_group, strict=True)
        for part, rows in enumerate(parts)
    ]
    with context.report.bar("prune", f"scoring ({criterion})") as bar:
        made = iter(run_stages(context.work, _score_job, jobs, pool=context.pool, progress=bar))
    return tuple(tuple(islice(made, len(parts))) for parts in of_group)


def _parts_to_score(data: Data, group: Group, config: BuildConfig) -> list[npt.NDArray[np.int64]]:
    """The group's calibration images, cut into parts; one part where the criterion sees no image."""
    rows = calibration_rows(data, group.classes, config.calibration, config.seed)
    if config.resolved_criterion in UNSEEING:
        return [rows]
    return np.array_split(rows, -(-len(rows) // SCORED_BY_STAGE))


def _score_job(job: _ScoreJob, progress: parallel.Progress) -> dict[str, Any]:
    model = checkpoint.load_model(job.base)
    how = FeatureExtractor(model, job.preprocessing.mean, job.preprocessing.std)
    pixels = how.normalise(torch.from_numpy(job.images.pixels()))
    family_for(model).score(model, pixels, job.how, progress, job.scratch / SCORES)
    return {"images": len(pixels)}


def _select_job(job: _SelectJob, progress: parallel.Progress) -> dict[str, Any]:
    model = checkpoint.load_model(job.base)
    narrowed = family_for(model).cut(model, job.scores, job.widths, job.fit)
    _save(job.scratch, narrowed.model, narrowed.rotation)
    note = _note(narrowed.model, narrowed.kept, job.preprocessing, job.validation)
    progress(1, 1)
    return note
