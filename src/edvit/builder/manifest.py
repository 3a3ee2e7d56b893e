"""A bundle's files and its manifest, of what was built."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edvit import __version__
from edvit.builder.built import Built
from edvit.builder.stages.base import weights_path
from edvit.builder.stages.data import default_augment
from edvit.builder.train.temperature import Reliability
from edvit.bundle import (
    UNKNOWN_BELOW,
    BaseModelInfo,
    DataInfo,
    FusionInfo,
    Manifest,
    Metric,
    SubModelInfo,
    model_file,
)
from edvit.digest import sha256_of
from edvit.plan.cost import model_cost
from edvit.plan.keep import format_keep

LIBRARIES = ("numpy", "onnx", "onnxruntime", "timm", "torch", "torchvision")
OF_MACHINES = {"workers", "ray", "memory_limit_mb", "checkpoint_every", "work_limit"}
"""Settings that do not change the result."""
OF_SOUNDS = {"seconds", "sample_rate", "mels"}
"""Settings that mean nothing where the data are images."""


def fill_bundle(folder: Path, built: Built, flags: dict[str, Any]) -> Manifest:
    """Copy the sub-models and the fusion into a folder, and describe them.

    Args:
        flags: the options that were given, as the manifest has them.
    """
    config, source, data = built.config, built.source, built.data
    plan, made = built.plan, built.fused
    packed = config.precision == "int4"
    infos = []
    for submodel in plan.submodels:
        path = folder / f"submodel-{submodel.id}.{'q4' if packed else 'onnx'}"
        architecture = made.architecture(submodel.id)
        cost = model_cost(architecture, config.precision)
        shutil.copyfile(made.submodel_path(submodel.id), path)
        infos.append(
            SubModelInfo(
                id=submodel.id,
                classes=submodel.classes,
                widths=architecture.widths,
                model=model_file(path),
                params=cost.params,
                flops=cost.flops,
                peak_memory_bytes=cost.peak_memory_bytes,
                feature_dim=architecture.feature_dim,
            )
        )
    fusion = folder / "fusion.onnx"
    shutil.copyfile(made.fusion_path, fusion)
    base_cost = model_cost(plan.base)
    return Manifest(
        version=2 if packed else 1,
        base=BaseModelInfo(
            name=source.model,
            image_size=source.preprocessing.image_size,
            widths=plan.base.widths,
            params=base_cost.params,
            flops=base_cost.flops,
            bytes=base_cost.weight_bytes,
            weights_sha256=sha256_of(weights_path(built.base.artifact)),
        ),
        data=DataInfo(
            spec=config.data,
            classes=data.classes,
            train=len(data.train),
            validation=len(data.validation),
            test=len(built.test.labels),
        ),
        preprocessing=source.preprocessing,
        submodels=tuple(infos),
        fusion=FusionInfo(
            model=model_file(fusion),
            submodels=tuple(range(len(infos))),
            params=int(made.fusion.note["params"]),
        ),
        plan=plan.info(),
        metrics=(*built.test.metrics(), *_calibration(built)),
        flags=flags,
        config=_resolved(built),
        versions={
            "edvit": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )


def _calibration(built: Built) -> Iterator[Metric]:
    """What was chosen on validation images so that probabilities can be relied on, and how far they can on test."""
    note, test = built.fused.fusion.note, built.test
    yield Metric(name="temperature", value=note["temperature"], unit="", split="validation")
    for share, probability in note["unknown_below"].items():
        yield Metric(name=f"{UNKNOWN_BELOW}{share}", value=probability, unit="probability", split="validation")
    yield Metric(name="calibration-error", value=Reliability.of(test.fused, test.labels).error, split="test")


def _resolved(built: Built) -> dict[str, Any]:
    """Every setting with the value that was used, also where the user left it open."""
    config, how, trained = built.config, built.source.preprocessing, built.base.artifact.note
    steps = built.plan.base.keep_steps
    pruned = min(submodel.heads_pruned for submodel in built.plan.submodels)
    return {
        **config.model_dump(mode="json", exclude={"fleet", "criterion", *OF_MACHINES, *OF_SOUNDS}),
        **({} if config.rotated else {"criterion": config.resolved_criterion}),
        **({} if how.spectrogram is None else how.spectrogram.model_dump(include=OF_SOUNDS)),
        "model": built.source.model,
        "image_size": how.image_size.json,
        "channels": how.channels,
        "groups": len(built.plan.submodels),
        "keep": format_keep(steps, pruned),
        "prune": config.resolved_prune,
        "augment": config.augment or default_augment(config.data),
        "base_epochs": trained["epochs"],
        "base_lr": trained["lr"],
        "widths": config.resolved_widths,
        "views": config.resolved_views,
        **({"views_kept": built.size.kept} if built.size.blocks else {}),
        "mix": config.resolved_mix,
        "strength": config.resolved_strength,
        "amp": built.mixed,
        "recover_lr": config.resolved_recover_lr,
    }
