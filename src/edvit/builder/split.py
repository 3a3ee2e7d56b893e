"""The stages that make the sub-models: score, prune, recover, fuse, export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit.architecture import Widths
from edvit.builder import backbone, base, checkpoint, export, importance, parallel, recover, surgery, teacher
from edvit.builder.artifacts import Artifact, Stage, WorkFolder
from edvit.builder.augment import Augmentation, Views
from edvit.builder.backbone import FeatureExtractor
from edvit.builder.base import features_of
from edvit.builder.config import Criterion
from edvit.builder.fusion import FusionTraining, train_fusion
from edvit.builder.images import ImageSet
from edvit.builder.prepare import WEIGHTS, Base, Context, Data, augmentation, load_extractor, weights_path
from edvit.builder.recover import Recovery
from edvit.builder.scores import Scores
from edvit.builder.training import Schedule
from edvit.preprocess import Preprocessing

FUSION_VIEWS = 4
"""Views of the training set that the fusion is trained on, at most."""
FUSION_EPOCHS = 12
SUBMODEL_FILE = "submodel.onnx"
FUSION_FILE = "fusion.onnx"
SAMPLES = 8
"""Validation images on which an exported file is compared with PyTorch."""


@dataclass(frozen=True)
class Group:
    """What one sub-model is to be."""

    classes: tuple[int, ...]
    widths: Widths


@dataclass(frozen=True)
class Split:
    """Trained sub-models and their fusion, all exported."""

    groups: tuple[Group, ...]
    scores: tuple[Artifact, ...]
    submodels: tuple[Artifact, ...]
    exports: tuple[Artifact, ...]
    fusion: Artifact

    def submodel_path(self, submodel: int) -> Path:
        """ONNX file of a sub-model."""
        return self.exports[submodel].folder / SUBMODEL_FILE

    @property
    def fusion_path(self) -> Path:
        """ONNX file of the fusion."""
        return self.fusion.folder / FUSION_FILE


@dataclass(frozen=True)
class _ScoreJob:
    stage: Stage
    scratch: Path
    base: Path
    images: ImageSet
    preprocessing: Preprocessing
    criterion: Criterion
    exact_heads: bool
    seed: int


def score(context: Context, data: Data, trained: Base, groups: Sequence[Group]) -> tuple[Artifact, ...]:
    """Importance of every component of the base model for each class group, on images of its own classes."""
    config = context.config
    # Fisher-KL ranks whole heads poorly, and there are few of them.
    exact_heads = config.attention == "heads" and config.criterion == "fisher-kl"
    jobs = []
    for group in groups:
        own = data.train.of_classes(group.classes)
        chosen = np.random.default_rng(config.seed).permutation(own)[: config.calibration]
        stage = Stage(
            "scores",
            {
                "data": data.digest,
                "base": trained.artifact.digest,
                "classes": group.classes,
                "criterion": config.criterion,
                "exact_heads": exact_heads,
                "images": np.sort(chosen).tolist(),
                "seed": config.seed,
            },
        )
        jobs.append(
            _ScoreJob(
                stage=stage,
                scratch=Path(),
                base=weights_path(trained.artifact),
                images=data.train.take(np.sort(chosen)),
                preprocessing=context.source.preprocessing,
                criterion=config.criterion,
                exact_heads=exact_heads,
                seed=config.seed,
            )
        )
    with context.report.bar("prune", f"scoring ({config.criterion})") as bar:
        return _run_stages(context, _score_job, jobs, bar)


def _score_job(job: _ScoreJob, progress: parallel.Progress) -> dict[str, Any]:
    model = checkpoint.load_model(job.base)
    how = FeatureExtractor(model, job.preprocessing.mean, job.preprocessing.std)
    pixels = (torch.from_numpy(job.images.pixels()).float() / 255.0 - how.mean) / how.std
    scores = importance.score(
        model, pixels, criterion=job.criterion, exact_heads=job.exact_heads, seed=job.seed, progress=progress
    )
    scores.save(job.scratch / "scores.safetensors")
    return {"images": len(pixels)}


@dataclass(frozen=True)
class _RecoverJob:
    stage: Stage
    scratch: Path
    base: Path
    scores: Path
    teacher: Path
    group: Group
    train: ImageSet
    validation: ImageSet
    augmentation: Augmentation
    view_seed: int
    how: Recovery
    preprocessing: Preprocessing
    seed: int


def recover_submodels(
    context: Context,
    data: Data,
    *,
    trained: Base,
    taught: Artifact,
    groups: Sequence[Group],
    scores: Sequence[Artifact],
) -> tuple[Artifact, ...]:
    """Prune the base model for each group and train what is left, several at a time."""
    config = context.config
    how = Recovery(
        Schedule(epochs=config.recover_epochs, lr=config.recover_lr, warmup_epochs=1.0, ema_decay=0.995),
        batch_size=config.batch_size,
    )
    jobs = []
    for group, scored in zip(groups, scores, strict=True):
        stage = Stage(
            "submodel",
            {
                "data": data.digest,
                "base": trained.artifact.digest,
                "teacher": taught.digest,
                "scores": scored.digest,
                "classes": group.classes,
                "widths": group.widths.model_dump(mode="json"),
                "recovery": asdict(how),
                "seed": config.seed,
            },
        )
        jobs.append(
            _RecoverJob(
                stage=stage,
                scratch=Path(),
                base=weights_path(trained.artifact),
                scores=scored.folder / "scores.safetensors",
                teacher=taught.folder,
                group=group,
                train=data.train,
                validation=data.validation,
                augmentation=augmentation(config),
                view_seed=config.seed + 1,
                how=how,
                preprocessing=context.source.preprocessing,
                seed=config.seed,
            )
        )
    with context.report.bar("recover", f"{len(jobs)} sub-models") as bar:
        return _run_stages(context, _recover_job, jobs, bar)


def _recover_job(job: _RecoverJob, progress: parallel.Progress) -> dict[str, Any]:
    whole = checkpoint.load_model(job.base)
    selection = surgery.select(Scores.load(job.scores), backbone.describe(whole), job.group.widths)
    pruned = surgery.prune(whole, selection)
    mean, std = job.preprocessing.mean, job.preprocessing.std
    before = base.accuracy(base.logits_of(FeatureExtractor(pruned, mean, std), job.validation), job.validation)
    trained = recover.recover(
        pruned,
        job.group.classes,
        Views(job.train, job.augmentation, job.view_seed),
        teacher.open_outputs(job.teacher),
        job.how,
        mean=mean,
        std=std,
        seed=job.seed,
        progress=progress,
    )
    checkpoint.save_model(job.scratch / WEIGHTS, trained)
    after = base.accuracy(base.logits_of(FeatureExtractor(trained, mean, std), job.validation), job.validation)
    return {"validation": after, "pruned": before, "kept_channels": selection.dim.tolist()}


@dataclass(frozen=True)
class _ExportJob:
    stage: Stage
    scratch: Path
    submodel: Artifact
    sample: ImageSet
    preprocessing: Preprocessing


def export_submodels(context: Context, data: Data, submodels: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """An ONNX file of every sub-model, compared with PyTorch."""
    sample = data.validation.take(np.arange(min(SAMPLES, len(data.validation))))
    jobs = [
        _ExportJob(Stage("export", {"submodel": a.digest}), Path(), a, sample, context.source.preprocessing)
        for a in submodels
    ]
    with context.report.bar("export", "ONNX") as bar:
        return _run_stages(context, _export_job, jobs, bar)


def _export_job(job: _ExportJob, progress: parallel.Progress) -> dict[str, Any]:
    extractor = load_extractor(job.submodel, job.preprocessing)
    export.export_submodel(extractor, torch.from_numpy(job.sample.pixels()), job.scratch / SUBMODEL_FILE)
    progress(1, 1)
    return {}


def _run_stages(
    context: Context,
    run: Callable[[Any, parallel.Progress], dict[str, Any]],
    jobs: Sequence[Any],
    bar: parallel.Progress,
) -> tuple[Artifact, ...]:
    """Run the jobs whose stages are not done yet, in parallel; what is finished survives a killed build."""
    work = context.work
    found = {job.stage.key: work.find(job.stage) for job in jobs}
    # By key: two sub-models may be the same to the last bit, and are then exported once.
    todo = {job.stage.key: job for job in jobs if found[job.stage.key] is None}
    begun = [replace(job, scratch=work.begin(job.stage)) for job in todo.values()]
    workers = context.config.workers
    try:
        made = parallel.run_jobs(_Committed(work, run), begun, workers=workers, threads=1, progress=bar)
    finally:
        for job in begun:
            work.discard(job.scratch)
    done = {**found, **dict(zip(todo, made, strict=True))}
    return tuple(done[job.stage.key] for job in jobs)


@dataclass(frozen=True)
class _Committed:
    """Runs a job and commits its stage in the same process, as soon as it is finished."""

    work: WorkFolder
    run: Callable[[Any, parallel.Progress], dict[str, Any]]

    def __call__(self, job: Any, progress: parallel.Progress) -> Artifact:
        return self.work.commit(job.stage, job.scratch, self.run(job, progress))


def fuse(context: Context, data: Data, taught: Artifact, submodels: Sequence[Artifact], hidden: int) -> Artifact:
    """Train the fusion on the frozen sub-models' features over some views of the training set, and export it."""
    config = context.config
    how = FusionTraining(Schedule(epochs=FUSION_EPOCHS, lr=1e-3, weight_decay=0.05, warmup_epochs=1.0, ema_decay=0.999))
    stage = Stage(
        "fusion",
        {
            "data": data.digest,
            "submodels": [artifact.digest for artifact in submodels],
            "teacher": taught.digest,
            "hidden": hidden,
            "training": asdict(how),
            "seed": config.seed,
        },
    )

    def fill(folder: Path) -> dict[str, Any]:
        outputs = teacher.open_outputs(taught.folder)
        count = min(FUSION_VIEWS, outputs.views)
        views = Views(data.train, augmentation(config), config.seed + 1)
        extractors = [load_extractor(artifact, context.source.preprocessing) for artifact in submodels]
        with context.report.bar("fuse", "features") as bar:
            features = _view_features(extractors, views, count, bar)
        with context.report.bar("fuse", "training") as bar:
            fusion = train_fusion(
                features,
                torch.from_numpy(data.train.labels).repeat(count),
                torch.from_numpy(np.concatenate([outputs.logits[view] for view in range(count)])),
                dims=[backbone.describe(extractor.model).widths.dim for extractor in extractors],
                hidden=hidden,
                how=how,
                seed=config.seed,
                progress=bar,
            )
        features = torch.cat([features_of(extractor, data.validation) for extractor in extractors], dim=1)
        export.export_fusion(fusion, features[:SAMPLES], folder / FUSION_FILE)
        with torch.inference_mode():
            logits = fusion(features, torch.ones(len(features), len(extractors)))
        return {
            "validation": base.accuracy(logits, data.validation),
            "params": sum(parameter.numel() for parameter in fusion.parameters()),
        }

    return context.work.make(stage, fill)


def _view_features(
    extractors: Sequence[FeatureExtractor], views: Views, count: int, progress: parallel.Progress, batch: int = 128
) -> torch.Tensor:
    """Concatenated features over views 0 to `count` - 1, float32 `[count x n, sum of dims]`."""
    n = len(views.images)
    rows = []
    with torch.inference_mode():
        for view in range(count):
            for start in range(0, n, batch):
                pixels = views.batch(view, np.arange(start, min(start + batch, n)))
                rows.append(torch.cat([extractor(pixels) for extractor in extractors], dim=1))
                progress(view * n + start, count * n)
    return torch.cat(rows)
