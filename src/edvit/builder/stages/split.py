"""The stages that make the sub-models from pruned ones: recover, export, fuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit.builder.config import BuildConfig, Precision
from edvit.builder.export import onnx_file as export
from edvit.builder.export.onnx_form import OPSET
from edvit.builder.images import ImageSet
from edvit.builder.jobs import parallel
from edvit.builder.jobs.artifacts import Artifact, Stage
from edvit.builder.jobs.jobs import run_stages
from edvit.builder.models import checkpoint
from edvit.builder.models.family import describe
from edvit.builder.stages.prepare import WEIGHTS, Context, Data, Teacher, load_extractor, training_views, weights_path
from edvit.builder.stages.prune import Group, load_rotation
from edvit.builder.train import base, recover
from edvit.builder.train.augment import Views
from edvit.builder.train.base import features_of
from edvit.builder.train.device import Device
from edvit.builder.train.fusion import FusionTraining, Samples, train_fusion
from edvit.builder.train.recover import Recovery
from edvit.builder.train.training import Schedule
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.conv import AnyArchitecture
from edvit.units import counted

FUSION_VIEWS = 4
"""Views of the training set that the fusion is trained on, at most."""
TRAINED_EPOCHS = 8
"""From so many epochs of recovery on one view serves the fusion as well (docs/decisions/2026-11-24-recovery.md)."""
FUSION_EPOCHS = 12
FEATURE_BATCH = 128
FEATURES = "features.npy"
SUBMODEL_FILE = "submodel.onnx"
FUSION_FILE = "fusion.onnx"
SAMPLES = 8
"""Validation images on which an exported file is compared with PyTorch."""


@dataclass(frozen=True)
class Split:
    """Trained sub-models and their fusion, all exported."""

    groups: tuple[Group, ...]
    pruned: tuple[Artifact, ...]
    submodels: tuple[Artifact, ...]
    exports: tuple[Artifact, ...]
    fusion: Artifact

    def architecture(self, submodel: int) -> AnyArchitecture:
        """Of a sub-model as it runs on a device: without a head."""
        model = checkpoint.load_model(weights_path(self.submodels[submodel]))
        return describe(model).model_copy(update={"classes": 0})

    def submodel_path(self, submodel: int) -> Path:
        """ONNX file of a sub-model."""
        return self.exports[submodel].folder / SUBMODEL_FILE

    @property
    def fusion_path(self) -> Path:
        """ONNX file of the fusion."""
        return self.fusion.folder / FUSION_FILE


@dataclass(frozen=True)
class _RecoverJob:
    stage: Stage
    scratch: Path
    pruned: Artifact
    teacher: Teacher
    group: Group
    views: Views
    validation: ImageSet
    how: Recovery
    preprocessing: Preprocessing
    seed: int
    device: Device


def recovery(config: BuildConfig) -> Recovery:
    """How a build trains its sub-models."""
    return Recovery(
        Schedule(epochs=config.recover_epochs, lr=config.resolved_recover_lr, warmup_epochs=1.0, ema_decay=0.995),
        batch_size=config.batch_size,
    )


def recover_submodels(
    context: Context,
    data: Data,
    *,
    taught: Teacher,
    groups: Sequence[Group],
    pruned: Sequence[Artifact],
) -> tuple[Artifact, ...]:
    """Train what pruning left for each group, several at a time."""
    config, how = context.config, recovery(context.config)
    jobs = []
    turns = cycle(context.devices)
    for group, narrow in zip(groups, pruned, strict=True):
        stage = Stage(
            "submodel",
            {
                "data": data.digest,
                "teacher": [view.digest for view in taught.views] if config.recover_epochs else [],
                "pruned": narrow.digest,
                "classes": group.classes,
                "recovery": asdict(how),
                "seed": config.seed,
                **config.training_precision,
            },
        )
        jobs.append(
            _RecoverJob(
                stage=stage,
                scratch=Path(),
                pruned=narrow,
                teacher=taught,
                group=group,
                views=training_views(config, data),
                validation=data.validation,
                how=how,
                preprocessing=context.source.preprocessing,
                seed=config.seed,
                device=next(turns),
            )
        )
    with context.report.bar("recover", counted(len(jobs), "sub-model")) as bar:
        return run_stages(context.work, _recover_job, jobs, pool=context.pool, progress=bar)


def _recover_job(job: _RecoverJob, progress: parallel.Progress) -> dict[str, Any]:
    mean, std = job.preprocessing.mean, job.preprocessing.std
    trained = recover.recover(
        checkpoint.load_model(weights_path(job.pruned)),
        job.group.classes,
        job.views,
        job.teacher.open(),
        job.how,
        rotation=load_rotation(job.pruned),
        blocks=job.teacher.blocks,
        mean=mean,
        std=std,
        seed=job.seed,
        device=job.device,
        progress=progress,
    )
    checkpoint.save_model(job.scratch / WEIGHTS, trained)
    logits = base.logits_of(FeatureExtractor(trained, mean, std), job.validation, device=job.device)
    return {"validation": base.accuracy(logits, job.validation)}


@dataclass(frozen=True)
class _ExportJob:
    stage: Stage
    scratch: Path
    submodel: Artifact
    sample: ImageSet
    preprocessing: Preprocessing
    precision: Precision


def export_submodels(context: Context, data: Data, submodels: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """An ONNX file of every sub-model, compared with PyTorch."""
    precision = context.config.precision
    sample = data.validation.take(np.arange(min(SAMPLES, len(data.validation))))
    jobs = [
        _ExportJob(
            Stage("export", {"submodel": submodel.digest, "precision": precision, "opset": OPSET}),
            Path(),
            submodel,
            sample,
            context.source.preprocessing,
            precision,
        )
        for submodel in submodels
    ]
    with context.report.bar("export", "ONNX") as bar:
        return run_stages(context.work, _export_job, jobs, pool=context.pool, progress=bar)


def _export_job(job: _ExportJob, progress: parallel.Progress) -> dict[str, Any]:
    extractor = load_extractor(job.submodel, job.preprocessing)
    path, images = job.scratch / SUBMODEL_FILE, torch.from_numpy(job.sample.pixels())
    export.export_submodel(extractor, images, path)
    moved = export.quantise_submodel(path, images) if job.precision == "int8" else 0.0
    progress(1, 1)
    return {"quantisation_error": moved}


@dataclass(frozen=True)
class _FeatureJob:
    stage: Stage
    scratch: Path
    submodel: Artifact
    views: Views
    count: int
    preprocessing: Preprocessing
    device: Device


def view_features(context: Context, data: Data, taught: Teacher, submodels: Sequence[Artifact]) -> tuple[Artifact, ...]:
    """Each sub-model's features over the views that the fusion is trained on, float32 `[views x n, dim]`."""
    config = context.config
    views = training_views(config, data)
    count = min(_fusion_views(config), len(taught.views))
    made_from = {
        "data": data.digest,
        "augment": asdict(views.augmentation),
        "mix": views.mix,
        "seed": views.seed,
        "views": count,
    }
    jobs = [
        _FeatureJob(
            Stage("features", {**made_from, "submodel": submodel.digest}),
            Path(),
            submodel,
            views,
            count,
            context.source.preprocessing,
            device,
        )
        for submodel, device in zip(submodels, cycle(context.devices), strict=False)
    ]
    with context.report.bar("fuse", "features") as bar:
        return run_stages(context.work, _feature_job, jobs, pool=context.pool, progress=bar)


def _fusion_views(config: BuildConfig) -> int:
    return FUSION_VIEWS if config.recover_epochs < TRAINED_EPOCHS else 1


def _feature_job(job: _FeatureJob, progress: parallel.Progress) -> dict[str, Any]:
    extractor, n = load_extractor(job.submodel, job.preprocessing).to(job.device.name), len(job.views.images)
    rows = []
    with torch.inference_mode():
        for view in range(job.count):
            for start in range(0, n, FEATURE_BATCH):
                index = np.arange(start, min(start + FEATURE_BATCH, n))
                rows.append(extractor(job.views.batch(view, index, job.device)).cpu())
                progress(view * n + start, job.count * n)
    np.save(job.scratch / FEATURES, torch.cat(rows).numpy())
    return {}


def fuse(
    context: Context,
    data: Data,
    *,
    taught: Teacher,
    submodels: Sequence[Artifact],
    features: Sequence[Artifact],
    hidden: int,
) -> Artifact:
    """Train the fusion on the frozen sub-models' features over some views of the training set, and export it."""
    config = context.config
    how = FusionTraining(Schedule(epochs=FUSION_EPOCHS, lr=1e-3, weight_decay=0.05, warmup_epochs=1.0, ema_decay=0.999))
    stage = Stage(
        "fusion",
        {
            "data": data.digest,
            "submodels": [artifact.digest for artifact in submodels],
            "features": [artifact.digest for artifact in features],
            "teacher": [view.digest for view in taught.views],
            "hidden": hidden,
            "start": "heads",
            "training": asdict(how),
            "seed": config.seed,
        },
    )

    def fill(folder: Path) -> dict[str, Any]:
        outputs, views = taught.open()[: _fusion_views(config)], training_views(config, data)
        labels = np.concatenate([views.labels(view) for view in range(len(outputs))])
        extractors = [load_extractor(artifact, context.source.preprocessing) for artifact in submodels]
        seen = np.concatenate([np.load(artifact.folder / FEATURES) for artifact in features], axis=1)
        device = context.devices[0]
        held_out = torch.cat(
            [features_of(extractor, data.validation, device=device) for extractor in extractors], dim=1
        )
        with context.report.bar("fuse", "training") as bar:
            fusion = train_fusion(
                Samples(torch.from_numpy(seen), torch.from_numpy(labels)),
                torch.from_numpy(np.concatenate([view.logits for view in outputs])),
                Samples(held_out, torch.from_numpy(data.validation.labels)),
                heads=[extractor.model.head.cpu() for extractor in extractors],
                hidden=hidden,
                how=how,
                seed=config.seed,
                device=device,
                progress=bar,
            )
        export.export_fusion(fusion, held_out[:SAMPLES], folder / FUSION_FILE)
        with torch.inference_mode():
            logits = fusion(held_out, torch.ones(len(held_out), len(extractors)))
        return {
            "validation": base.accuracy(logits, data.validation),
            "params": sum(parameter.numel() for parameter in fusion.parameters()),
        }

    return context.work.make(stage, fill)
