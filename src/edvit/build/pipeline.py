"""From training data to a bundle, top to bottom: data, base, split, prune, recover, assign, fuse, export, test."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit import __version__
from edvit.build import backbone, measure, prepare, split
from edvit.build.artifacts import WorkFolder
from edvit.build.config import BuildConfig
from edvit.build.measure import Exported, TestResult
from edvit.build.progress import Reporter
from edvit.bundle import (
    BaseModelInfo,
    Bundle,
    DataInfo,
    FusionInfo,
    Manifest,
    SubModelInfo,
    model_file,
    sha256_of,
    write_bundle,
)
from edvit.partition import partition
from edvit.plan.cost import vit_cost
from edvit.plan.greedy import assign
from edvit.plan.keep import default_keep, heads_pruned_at, parse_keep
from edvit.plan.placement import Plan

LIBRARIES = ("numpy", "onnx", "onnxruntime", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class Built:
    """All that a build made, for the report and for the demo."""

    bundle: Bundle
    context: prepare.Context
    data: prepare.Data
    base: prepare.Base
    plan: Plan
    split: Exported
    baseline: Exported | None
    test: TestResult


def build(
    config: BuildConfig,
    out: Path,
    *,
    work: Path | None = None,
    force: frozenset[str] = frozenset(),
    flags: Mapping[str, Any] | None = None,
    report: Reporter | None = None,
) -> Built:
    """Build a bundle at `out`; what an earlier run with the same settings has finished is not done again.

    Args:
        config: the settings.
        out: the bundle's folder; replaced if it holds a bundle.
        work: where the stages' results are kept; `OUT-work` beside the bundle by default.
        force: names of stages to redo.
        flags: what the user typed, for the record.
        report: whom to tell.

    Raises:
        EdvitError: the input cannot be used, the fleet cannot hold the sub-models, or a stage failed.
    """
    report = report or Reporter(quiet=True)
    source = prepare.open_source(config)
    plan = make_plan(config, source)
    context = prepare.Context(config, source, WorkFolder(work or out.with_name(out.name + "-work"), force), report)

    start = time.monotonic()
    data = prepare.prepare_data(context)
    report.line("data", _describe_data(context, data), time.monotonic() - start)

    start = time.monotonic()
    trained = prepare.prepare_base(context, data)
    report.line("base", _describe_base(context, trained), time.monotonic() - start)
    report.line("split", _describe_groups(plan, data))

    start = time.monotonic()
    taught = prepare.run_teacher(context, data, trained)
    groups = [split.Group(submodel.classes, submodel.architecture.widths) for submodel in plan.submodels]
    everything = split.Group(tuple(range(len(data.classes))), groups[0].widths)
    with_baseline = config.baseline and len(groups) > 1
    scores = split.score(context, data, trained, [*groups, everything] if with_baseline else groups)
    report.line("prune", _describe_widths(plan), time.monotonic() - start)

    start = time.monotonic()
    submodels = split.recover_submodels(
        context,
        data,
        trained=trained,
        taught=taught,
        groups=[*groups, everything] if with_baseline else groups,
        scores=scores,
    )
    report.line("recover", _describe_submodels(len(groups), with_baseline, config), time.monotonic() - start)

    start = time.monotonic()
    n = len(groups)
    made = _finish(context, data, taught, split.Made(tuple(groups), scores[:n], submodels[:n]), plan.fusion_hidden)
    baseline = None
    if with_baseline:
        only = split.Made((everything,), scores[n:], submodels[n:])
        baseline = _finish(context, data, taught, only, plan.fusion_hidden)
    fused = float(made.split.fusion.record()["validation"])
    report.line("fuse", f"exported and compared with PyTorch · {fused:.1%} on validation", time.monotonic() - start)

    start = time.monotonic()
    devices = [submodel.device for submodel in plan.submodels]
    test = measure.run_test(context, data, trained, made, devices=devices, baseline=baseline)
    report.line("test", _describe_test(test), time.monotonic() - start)

    bundle = write_bundle(
        out, lambda folder: _fill_bundle(folder, context, data, trained, plan, made, test, dict(flags or {}))
    )
    return Built(bundle, context, data, trained, plan, made, baseline, test)


def make_plan(config: BuildConfig, source: prepare.Source) -> Plan:
    """Class groups, widths and devices, before anything is trained.

    Raises:
        InfeasibleError: the fleet cannot hold the sub-models however much is pruned.
    """
    classes = len(source.train.classes)
    how = source.preprocessing
    template = backbone.template(source.model, image_size=how.image_size, channels=how.channels, classes=classes)
    architecture = backbone.describe(template)
    keep = parse_keep(config.keep) if config.keep else default_keep(architecture.heads)
    return assign(
        architecture,
        partition(classes, config.resolved_groups, config.seed),
        config.fleet,
        heads_pruned=heads_pruned_at(keep, architecture.heads),
        mode=config.attention,
    )


def _finish(context: prepare.Context, data: prepare.Data, taught: Any, made: split.Made, hidden: int) -> Exported:
    fusion = split.fuse(context, data, taught, made.submodels, hidden)
    whole = split.Split(made.groups, made.scores, made.submodels, fusion)
    return Exported(whole, split.export_models(context, data, whole, hidden))


def _fill_bundle(  # noqa: PLR0917
    folder: Path,
    context: prepare.Context,
    data: prepare.Data,
    trained: prepare.Base,
    plan: Plan,
    made: Exported,
    test: TestResult,
    flags: dict[str, Any],
) -> Manifest:
    config, source = context.config, context.source
    infos = []
    for submodel in plan.submodels:
        path = folder / f"submodel-{submodel.id}.onnx"
        shutil.copyfile(made.submodel_path(submodel.id), path)
        infos.append(
            SubModelInfo(
                id=submodel.id,
                classes=submodel.classes,
                widths=submodel.architecture.widths,
                model=model_file(path),
                params=submodel.cost.params,
                flops=submodel.cost.flops,
                peak_memory_bytes=submodel.cost.peak_memory_bytes,
                feature_dim=submodel.architecture.widths.dim,
            )
        )
    fusion = folder / "fusion.onnx"
    shutil.copyfile(made.fusion_path, fusion)
    base_cost = vit_cost(plan.base)
    return Manifest(
        base=BaseModelInfo(
            name=source.model,
            image_size=source.preprocessing.image_size,
            widths=plan.base.widths,
            params=base_cost.params,
            flops=base_cost.flops,
            bytes=base_cost.weight_bytes,
            weights_sha256=sha256_of(prepare.weights_path(trained.artifact)),
        ),
        data=DataInfo(
            spec=config.data,
            classes=data.classes,
            train=len(data.train),
            validation=len(data.validation),
            test=len(test.labels),
        ),
        preprocessing=source.preprocessing,
        submodels=tuple(infos),
        fusion=FusionInfo(
            model=model_file(fusion),
            submodels=tuple(range(len(infos))),
            params=int(made.files.record()["fusion_params"]),
        ),
        plan=plan.info(),
        metrics=test.metrics(),
        flags=flags,
        config={**config.model_dump(mode="json", exclude={"fleet", "workers"}), "model": source.model},
        versions={
            "edvit": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )


# --- what a person reads -----------------------------------------------------------------------------------


def _describe_data(context: prepare.Context, data: prepare.Data) -> str:
    how, config = context.source.preprocessing, context.config
    return (
        f"{config.data} · {len(data.classes)} classes, {how.image_size}×{how.image_size}, "
        f"{len(data.train):,} train / {len(data.validation):,} validation"
    )


def _describe_base(context: prepare.Context, trained: prepare.Base) -> str:
    note = trained.artifact.record()
    how = f"{note['epochs']} epochs" if note["epochs"] else "as given"
    return f"{context.source.model} · {how} · {note['validation']:.1%} on validation"


def _describe_groups(plan: Plan, data: prepare.Data) -> str:
    sizes = sorted({len(submodel.classes) for submodel in plan.submodels})
    per_group = " or ".join(str(size) for size in sizes)
    return f"{len(data.classes)} classes in {len(plan.submodels)} groups of {per_group}"


def _describe_widths(plan: Plan) -> str:
    old, new = plan.base.widths, plan.submodels[0].architecture.widths
    ratio = vit_cost(plan.base).params / max(submodel.cost.params for submodel in plan.submodels)
    return (
        f"d {old.dim}→{new.dim}, heads {old.blocks[0].heads}×{old.blocks[0].head_dim}→"
        f"{new.blocks[0].heads}×{new.blocks[0].head_dim}, FFN {old.blocks[0].hidden}→{new.blocks[0].hidden} · "
        f"{ratio:.1f}× smaller"
    )


def _describe_submodels(count: int, with_baseline: bool, config: BuildConfig) -> str:
    more = ", and one for all classes to compare" if with_baseline else ""
    return f"{count} sub-models{more} · {config.recover_epochs} epochs, {config.workers} at a time"


def _describe_test(test: TestResult) -> str:
    n1 = "" if test.baseline is None else f", N = 1 at the same width {test.accuracy(test.baseline):.1%}"
    return (
        f"{len(test.labels):,} test images · fused {test.accuracy(test.fused):.1%}, "
        f"base {test.accuracy(test.base):.1%}{n1}"
    )
