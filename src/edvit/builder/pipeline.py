"""From training data to a bundle, top to bottom: data, base, split, prune, recover, assign, fuse, export, test."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edvit import __version__
from edvit.builder.config import BuildConfig
from edvit.builder.jobs import parallel, ray_cluster
from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.progress import Reporter
from edvit.builder.models.family import vit_widths
from edvit.builder.models.weights import check_weights
from edvit.builder.report.page import ReportData, result_rows, write_report
from edvit.builder.stages import prepare, split
from edvit.builder.stages import test as measure
from edvit.builder.stages.prune import Group, check_calibration, load_kept, prune
from edvit.builder.stages.split import Split
from edvit.builder.stages.test import TestResult
from edvit.builder.subspace import rms
from edvit.builder.train.device import devices
from edvit.builder.vit import backbone
from edvit.bundle import (
    BaseModelInfo,
    Bundle,
    DataInfo,
    FusionInfo,
    Manifest,
    SubModelInfo,
    check_target,
    model_file,
    sha256_of,
    write_bundle,
)
from edvit.plan import make
from edvit.plan.cost import model_cost
from edvit.plan.keep import format_keep
from edvit.plan.plan import Plan
from edvit.shape.conv import FilterWidths
from edvit.units import counted

REPORT = "report.html"
LIBRARIES = ("numpy", "onnx", "onnxruntime", "timm", "torch", "torchvision")
OF_MACHINES = {"workers", "ray", "memory_limit_mb"}
"""Settings that do not change the result."""
OF_SOUNDS = {"seconds", "sample_rate", "mels"}
"""Settings that mean nothing where the data are images."""


@dataclass(frozen=True)
class Built:
    """All that the stages of a build made."""

    context: prepare.Context
    data: prepare.Data
    base: prepare.Base
    plan: Plan
    split: Split
    baseline: Split | None
    test: TestResult

    @property
    def devices(self) -> list[str]:
        """The device of each sub-model, in their order."""
        return [submodel.device for submodel in self.plan.submodels]


def build(
    config: BuildConfig,
    out: Path,
    *,
    work: Path | None = None,
    force: frozenset[str] = frozenset(),
    flags: Mapping[str, Any] | None = None,
    report: Reporter | None = None,
) -> tuple[Bundle, Built]:
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
    out = check_target(out)
    # What is missing must come out before anything is decoded.
    devices(config.device, config.amp)
    if config.weights is not None:
        check_weights(config.weights)
    source = prepare.open_source(config)
    plan = make_plan(config, source)
    check_calibration(config, source, _wanted(config, plan))
    folder = WorkFolder((work or out.with_name(out.name + "-work")).absolute(), force)
    with folder.locked(), _pool(config, folder) as pool:
        context = prepare.Context(config, source, folder, report or Reporter(quiet=True), pool)
        return _run(context, plan, out, dict(flags or {}))


def _pool(config: BuildConfig, folder: WorkFolder) -> AbstractContextManager[parallel.Pool]:
    if config.ray is None:
        return nullcontext(parallel.Processes(config.workers))
    return ray_cluster.connected(config.ray, folder.root)


def _run(context: prepare.Context, plan: Plan, out: Path, flags: dict[str, Any]) -> tuple[Bundle, Built]:
    config, report = context.config, context.report
    durations: dict[str, float] = {}

    def done(stage: str, text: str) -> None:
        durations[stage] = time.monotonic() - start - sum(durations.values())
        report.line(stage, text, durations[stage])

    start = time.monotonic()
    data = prepare.prepare_data(context)
    done("data", _describe_data(context, data))

    trained = prepare.prepare_base(context, data)
    done("base", _describe_base(context, trained))
    report.line("split", _describe_groups(plan, data))

    taught = prepare.run_teacher(context, data, trained)
    wanted = _wanted(config, plan)
    n, hidden = len(plan.submodels), plan.fusion_hidden
    with_baseline = len(wanted) > n
    pruned = prune(context, data, trained, wanted)
    done("prune", _describe_widths(plan, config))

    submodels = split.recover_submodels(context, data, taught=taught, groups=wanted, pruned=pruned)
    done("recover", _describe_submodels(n, with_baseline, context))

    exports = split.export_submodels(context, data, submodels)
    features = split.view_features(context, data, taught, submodels)

    def fused_split(first: int, last: int) -> Split:
        fusion = split.fuse(
            context,
            data,
            taught=taught,
            submodels=submodels[first:last],
            features=features[first:last],
            hidden=hidden,
        )
        return Split(tuple(wanted[first:last]), pruned[first:last], submodels[first:last], exports[first:last], fusion)

    made = fused_split(0, n)
    baseline = fused_split(n, n + 1) if with_baseline else None
    fused = float(made.fusion.record()["validation"])
    done("fuse", f"exported and compared with PyTorch · {fused:.1%} on validation")

    devices = [submodel.device for submodel in plan.submodels]
    test = measure.run_test(context, data, trained, made, devices=devices, baseline=baseline)
    done("test", _describe_test(test))

    built = Built(context, data, trained, plan, made, baseline, test)

    def fill(folder: Path) -> Manifest:
        manifest = _fill_bundle(folder, built, flags)
        write_report(folder / REPORT, report_data(built, manifest, durations))
        return manifest

    bundle = write_bundle(out, fill)
    report.line("bundle", f"{bundle.path} · {REPORT} inside")
    return bundle, built


def _wanted(config: BuildConfig, plan: Plan) -> list[Group]:
    """What is pruned: the plan's sub-models, and where there are several one for all classes (N = 1), if asked for."""
    groups = [Group(submodel.classes, submodel.architecture.widths) for submodel in plan.submodels]
    classes = tuple(range(sum(len(group.classes) for group in groups)))
    return [*groups, Group(classes, groups[0].widths)] if config.baseline and len(groups) > 1 else groups


def make_plan(config: BuildConfig, source: prepare.Source) -> Plan:
    """Class groups, widths and devices, before anything is trained.

    Raises:
        InfeasibleError: the fleet cannot hold the sub-models however much is pruned.
        ModelError: the model cannot be pruned by subspace, and that was asked for.
    """
    classes = len(source.train.classes)
    how = source.preprocessing
    architecture = source.architecture
    if config.rotated:
        rms.check_rotatable(
            backbone.template(source.model, image_size=how.image_size, channels=how.channels, classes=classes)
        )
    return make.make_plan(
        architecture,
        config.fleet,
        groups=config.groups,
        keep=config.keep,
        attention=config.attention,
        rotated=config.rotated,
        seed=config.seed,
    )


def _fill_bundle(folder: Path, built: Built, flags: dict[str, Any]) -> Manifest:
    config, source, data = built.context.config, built.context.source, built.data
    plan, made = built.plan, built.split
    infos = []
    for submodel in plan.submodels:
        path = folder / f"submodel-{submodel.id}.onnx"
        architecture = made.architecture(submodel.id)
        cost = model_cost(architecture)
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
        base=BaseModelInfo(
            name=source.model,
            image_size=source.preprocessing.image_size,
            widths=plan.base.widths,
            params=base_cost.params,
            flops=base_cost.flops,
            bytes=base_cost.weight_bytes,
            weights_sha256=sha256_of(prepare.weights_path(built.base.artifact)),
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
            params=int(made.fusion.record()["params"]),
        ),
        plan=plan.info(),
        metrics=built.test.metrics(),
        flags=flags,
        config=_resolved(built),
        versions={
            "edvit": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )


def _resolved(built: Built) -> dict[str, Any]:
    """Every setting with the value that was used, also where the user left it open."""
    config, how = built.context.config, built.context.source.preprocessing
    steps = built.plan.base.keep_steps
    pruned = min(submodel.heads_pruned for submodel in built.plan.submodels)
    return {
        **config.model_dump(mode="json", exclude={"fleet", "criterion", *OF_MACHINES, *OF_SOUNDS}),
        **({} if config.rotated else {"criterion": config.resolved_criterion}),
        **({} if how.spectrogram is None else how.spectrogram.model_dump(include=OF_SOUNDS)),
        "model": built.context.source.model,
        "image_size": how.image_size,
        "channels": how.channels,
        "groups": len(built.plan.submodels),
        "keep": format_keep(steps, pruned),
        "prune": config.resolved_prune,
        "augment": config.augment or prepare.default_augment(config.data),
        "base_epochs": built.base.artifact.record()["epochs"],
        "base_lr": built.base.artifact.record()["lr"],
        "widths": config.resolved_widths,
        "views": config.resolved_views,
        "mix": config.resolved_mix,
        "strength": config.resolved_strength,
        "amp": built.context.devices[0].mixed,
        "recover_lr": config.resolved_recover_lr,
    }


def report_data(built: Built, manifest: Manifest, durations: Mapping[str, float]) -> ReportData:
    """What the report shows, with latencies measured here and now."""
    test, made = built.test, built.split
    classes = len(built.data.classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (test.labels, test.fused.argmax(axis=1)), 1)
    rows = result_rows(
        manifest,
        own_accuracy={s.id: test.own_accuracy(s.id, s.classes) for s in built.plan.submodels},
        measured_s=measure.latencies_s(built.base, made, built.data, devices=built.devices, baseline=built.baseline),
    )
    return ReportData(
        manifest=manifest,
        rows=rows,
        confusion=confusion,
        kept={
            submodel.id: load_kept(artifact)
            for submodel, artifact in zip(built.plan.submodels, made.pruned, strict=True)
        },
        pruned_by=_describe_pruner(built.context.config),
        seeds={"seed": built.context.config.seed},
        measured_on=f"{platform.machine()}, one thread, one image at a time: the base in PyTorch fp32, "
        f"sub-models in ONNX Runtime {built.context.config.precision}; fused is the device that takes longest with all "
        "its sub-models, and the fusion, without a network; N = 1 is its one sub-model and its fusion",
        durations_s=durations,
    )


# --- what a person reads -----------------------------------------------------------------------------------


def _describe_data(context: prepare.Context, data: prepare.Data) -> str:
    how, config = context.source.preprocessing, context.config
    sounds = "" if how.spectrogram is None else f"{how.spectrogram.seconds:g} s of sound as "
    return " · ".join(
        (
            config.data,
            f"{counted(len(data.classes), 'class', 'es')}, {sounds}{how.image_size}×{how.image_size}, "
            f"{len(data.train):,} train / {len(data.validation):,} validation",
            *context.source.train.notes,
        )
    )


def _describe_base(context: prepare.Context, trained: prepare.Base) -> str:
    note = trained.artifact.record()
    how = counted(note["epochs"], "epoch") if note["epochs"] else "as given"
    return f"{context.source.model} · {how} · {note['validation']:.1%} on validation"


def _describe_groups(plan: Plan, data: prepare.Data) -> str:
    sizes = sorted({len(submodel.classes) for submodel in plan.submodels})
    per_group = " or ".join(str(size) for size in sizes)
    return f"{counted(len(data.classes), 'class', 'es')} in {counted(len(plan.submodels), 'group')} of {per_group}"


def _describe_pruner(config: BuildConfig) -> str:
    if not config.rotated:
        return f"channels, by {config.resolved_criterion}"
    fitted = ", widths fitted" if config.resolved_widths == "fitted" else ""
    return f"subspace{fitted}" + "".join(f", without {step}" for step in config.without)


def _describe_widths(plan: Plan, config: BuildConfig) -> str:
    old, new = plan.base.widths, plan.submodels[0].architecture.widths
    limit = "no dearer than " if config.resolved_widths == "fitted" else ""
    ratio = model_cost(plan.base).params / max(submodel.cost.params for submodel in plan.submodels)
    if isinstance(old, FilterWidths) and isinstance(new, FilterWidths):
        widths = f"filters {min(old.filters)}–{max(old.filters)}→{min(new.filters)}–{max(new.filters)}"
    else:
        old, new = vit_widths(old), vit_widths(new)
        widths = (
            f"d {old.dim}→{new.dim}, heads {old.blocks[0].heads}×{old.blocks[0].head_dim}→"
            f"{new.blocks[0].heads}×{new.blocks[0].head_dim}, FFN {old.blocks[0].hidden}→{new.blocks[0].hidden}"
        )
    return f"by {_describe_pruner(config)} · {limit}{widths} · {ratio:.1f}× smaller"


def _describe_submodels(count: int, with_baseline: bool, context: prepare.Context) -> str:
    more = ", and one for all classes to compare" if with_baseline else ""
    epochs = counted(context.config.recover_epochs, "epoch")
    return f"{counted(count, 'sub-model')}{more} · {epochs}, {context.pool.describe()}"


def _describe_test(test: TestResult) -> str:
    n1 = "" if test.baseline is None else f", N = 1 at the same width {test.accuracy(test.baseline):.1%}"
    return (
        f"{counted(len(test.labels), 'test image')} · fused {test.accuracy(test.fused):.1%}, "
        f"base {test.accuracy(test.base):.1%}{n1}"
    )
