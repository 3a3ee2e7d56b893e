"""From training data to a bundle, top to bottom: data, base, partition, prune, recover, export, fuse, test."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edvit import __version__
from edvit.builder.config import BuildConfig
from edvit.builder.describe import (
    describe_base,
    describe_data,
    describe_groups,
    describe_pruner,
    describe_submodels,
    describe_test,
    describe_timing,
    describe_widths,
)
from edvit.builder.jobs import parallel, ray_cluster
from edvit.builder.jobs.artifacts import Artifact, WorkFolder
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.checkpoint import read_architecture
from edvit.builder.models.family import VIT
from edvit.builder.report import mistakes
from edvit.builder.report.latency import Latency, measure_latencies
from edvit.builder.report.machine import cpu
from edvit.builder.report.page import Made, ReportData, write_report
from edvit.builder.report.rows import class_rows, latency_rows, result_rows
from edvit.builder.report.statistics import Difference
from edvit.builder.report.training import Training
from edvit.builder.report.verdict import Verdict, judge
from edvit.builder.stages import base as base_stage
from edvit.builder.stages import prune_channels, prune_subspace
from edvit.builder.stages.base import Base, Start, weights_path
from edvit.builder.stages.data import Data, class_weights, decode, default_augment, split_training, training_views
from edvit.builder.stages.export import export, quantise
from edvit.builder.stages.fuse import Fused, fuse_job, fusion_views, most_fusion_views
from edvit.builder.stages.prune import Group, load_kept
from edvit.builder.stages.recover import recover, recovery
from edvit.builder.stages.source import Source, open_source
from edvit.builder.stages.teacher import teach
from edvit.builder.stages.test import TestResult, export_base, open_test, run_test
from edvit.builder.subspace import rms
from edvit.builder.train.device import TorchDevice, devices
from edvit.builder.work_size import DEFAULT_SHARE, WorkSize, fixed_bytes, work_size
from edvit.bundle import (
    BaseModelInfo,
    Bundle,
    DataInfo,
    FusionInfo,
    Manifest,
    SubModelInfo,
    check_target,
    clear_leftovers,
    model_file,
    sha256_of,
    write_bundle,
)
from edvit.errors import InfeasibleError
from edvit.plan import make
from edvit.plan.cost import model_cost
from edvit.plan.keep import format_keep
from edvit.plan.plan import Plan
from edvit.runtime.source import what

REPORT = "report.html"
LIBRARIES = ("numpy", "onnx", "onnxruntime", "timm", "torch", "torchvision")
OF_MACHINES = {"workers", "ray", "memory_limit_mb", "checkpoint_every", "work_limit"}
"""Settings that do not change the result."""
OF_SOUNDS = {"seconds", "sample_rate", "mels"}
"""Settings that mean nothing where the data are images."""


@dataclass(frozen=True)
class Built:
    """All that the stages of a build made."""

    config: BuildConfig
    source: Source
    data: Data
    base: Base
    plan: Plan
    fused: Fused
    baseline: Fused | None
    test: TestResult
    latencies: Mapping[str, Latency]
    """Measured on this machine, as `measure_latencies` gives them."""
    verdict: Verdict
    size: WorkSize
    """Announced for the work folder, and on how many views streams were kept."""
    mixed: bool
    """Whether training was in mixed precision."""

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
    command: Sequence[str] | None = None,
    report: Reporter | None = None,
) -> tuple[Bundle, Built]:
    """Build a bundle at `out`; what an earlier run with the same settings has finished is not done again.

    Args:
        config: the settings.
        out: the bundle's folder; replaced if it holds a bundle.
        work: where the stages' results are kept; `OUT-work` beside the bundle by default.
        force: names of stages to redo.
        flags: what the user typed, for the record.
        command: the whole command as it was typed, for the report; None where there was none.
        report: whom to tell.

    Raises:
        EdvitError: the input cannot be used, the fleet cannot hold the sub-models, or a stage failed.
    """
    out = check_target(out)
    # What is missing must come out before anything is decoded.
    where = devices(config.device, config.amp)
    source = open_source(config)
    plan = make_plan(config, source)
    start = base_stage.load(config, source)
    prune_subspace.check_calibration(config, source, _wanted(config, plan))
    root = (work or out.with_name(out.name + "-work")).absolute()
    folder = WorkFolder(root, force, checkpoint_s=config.checkpoint_every)
    with folder.locked(), _pool(config, folder) as pool:
        runner = Runner(folder, pool, report or Reporter(quiet=True))
        size = _work_size(config, source, plan, folder)
        runner.report.note("work", size.describe())
        return _run(
            runner,
            config,
            source,
            plan,
            start,
            size=size,
            where=where,
            out=out,
            flags=dict(flags or {}),
            command=command,
        )


def _work_size(config: BuildConfig, source: Source, plan: Plan, folder: WorkFolder) -> WorkSize:
    """What the work folder will take, and on how many views streams are kept within its limit. Raises ConfigError."""
    train, held_out = split_training(source.train, config.validation)
    seen = len(train) + (0 if source.unlabelled is None else len(source.unlabelled))
    groups = _wanted(config, plan)
    fixed = fixed_bytes(
        plan,
        len(groups),
        decoded=seen + len(held_out) + len(source.test),
        train=seen,
        views=config.resolved_views,
        feature_views=most_fusion_views(config),
        pixels=source.preprocessing.channels * source.preprocessing.image_size.pixels,
        workers=config.workers,
        pruning=prune_subspace.disk_bytes(config, source, groups),
    )
    capacity = folder.capacity()
    return work_size(
        plan,
        train=seen,
        views=config.resolved_views,
        recovers=config.recover_epochs > 0,
        fixed=fixed,
        limit_gb=config.work_limit,
        capacity=capacity,
        share=folder.settled("limit", int(capacity * DEFAULT_SHARE)),
    )


def _pool(config: BuildConfig, folder: WorkFolder) -> AbstractContextManager[parallel.Pool]:
    if config.ray is None:
        return nullcontext(parallel.Processes(config.workers))
    return ray_cluster.connected(config.ray, folder.root)


def _run(
    runner: Runner,
    config: BuildConfig,
    source: Source,
    plan: Plan,
    begun: Start,
    *,
    size: WorkSize,
    where: Sequence[TorchDevice],
    out: Path,
    flags: dict[str, Any],
    command: Sequence[str] | None,
) -> tuple[Bundle, Built]:
    durations: dict[str, float] = {}

    def done(stage: str, text: str) -> None:
        durations[stage] = time.monotonic() - start - sum(durations.values())
        runner.report.line(stage, text, durations[stage], kept=not runner.made_any())

    start, how = time.monotonic(), source.preprocessing
    data = decode(runner, source, config.validation, config.bad_files)
    done("data", describe_data(config, source, data))
    for warning in data.warnings:
        runner.report.note("data", f"warning: {warning}")

    base = base_stage.train(runner, config, source, data, start=begun, device=where[0])
    done("base", describe_base(source, base))
    runner.report.line("partition", describe_groups(plan, data))

    views = training_views(config, data)
    taught = teach(runner, config, base, views, blocks=size.blocks, kept=size.kept, preprocessing=how, devices=where)
    wanted, n = _wanted(config, plan), len(plan.submodels)
    pruned = prune(runner, config, data, base, wanted, source=source, device=where[0])
    _check_memory(plan, pruned, config)
    done("prune", describe_widths(plan, config))

    recovered = recover(
        runner,
        wanted,
        pruned,
        taught,
        views=views,
        validation=data.validation,
        how=recovery(config),
        preprocessing=how,
        seed=config.seed,
        amp=config.amp,
        devices=where,
    )
    done("recover", describe_submodels(n, len(wanted) > n, config, runner.pool))

    count = fusion_views(config, taught)
    exported = export(runner, recovered, views, count, validation=data.validation, preprocessing=how, devices=where)
    files = quantise(runner, exported, config.precision, data.validation)

    def fused_of(part: slice) -> Fused:
        job = fuse_job(
            exported[part],
            taught,
            views,
            count,
            validation=data.validation,
            hidden=plan.fusion_hidden,
            class_weights=class_weights(config, data),
            seed=config.seed,
            device=where[0],
        )
        fusion = runner.make(job, "training")
        return Fused(tuple(wanted[part]), pruned[part], recovered[part], exported[part], files[part], fusion)

    fused = fused_of(slice(n))
    baseline = fused_of(slice(n, None)) if len(wanted) > n else None
    done("fuse", f"exported and compared with PyTorch · {fused.fusion.note['validation']:.1%} on validation")

    test = run_test(
        runner,
        open_test(config, data.classes),
        how,
        base,
        fused,
        devices=[submodel.device for submodel in plan.submodels],
        baseline=baseline,
        where=where[0],
    )
    latencies = measure_latencies(
        base,
        export_base(runner, base, data.validation),
        fused,
        data.validation.pixels(slice(0, 1)),
        devices=[submodel.device for submodel in plan.submodels],
        baseline=baseline,
    )
    done("test", describe_test(test, what(source.preprocessing)))
    verdict = _judge(test, n, what(source.preprocessing))
    runner.report.line("verdict", " ".join((verdict.text, *verdict.remarks)))

    built = Built(
        config, source, data, base, plan, fused, baseline, test, latencies, verdict, size, mixed=where[0].mixed
    )
    made = Made(datetime.now(timezone.utc), cpu(), None if command is None else shlex.join(command))

    def fill(folder: Path) -> Manifest:
        manifest = _fill_bundle(folder, built, flags)
        write_report(folder / REPORT, report_data(built, manifest, made, durations))
        return manifest

    bundle = write_bundle(out, fill)
    clear_leftovers(out)
    runner.report.line("bundle", f"{bundle.path} · {REPORT} inside")
    return bundle, built


def prune(
    runner: Runner,
    config: BuildConfig,
    data: Data,
    base: Base,
    groups: Sequence[Group],
    *,
    source: Source,
    device: TorchDevice,
) -> tuple[Artifact, ...]:
    """A pruned model for each group, by the pruner that the settings name.

    Raises:
        ModelError: by subspace, the base model's residual stream cannot be rotated.
        DataError: by subspace, a class has no calibration images.
    """
    how = source.preprocessing
    if config.rotated:
        return prune_subspace.prune(runner, config, data, base, groups, preprocessing=how, device=device)
    return prune_channels.prune(runner, config, data, base, groups, preprocessing=how)


def _wanted(config: BuildConfig, plan: Plan) -> list[Group]:
    """What is pruned: the plan's sub-models, and where there are several one for all classes (N = 1), if asked for."""
    groups = [Group(submodel.classes, submodel.architecture.widths) for submodel in plan.submodels]
    classes = tuple(range(sum(len(group.classes) for group in groups)))
    return [*groups, Group(classes, groups[0].widths)] if config.baseline and len(groups) > 1 else groups


def make_plan(config: BuildConfig, source: Source) -> Plan:
    """Class groups, widths and devices, before anything is trained.

    Raises:
        InfeasibleError: the fleet cannot hold the sub-models however much is pruned.
        ModelError: the model cannot be pruned by subspace, and that was asked for.
    """
    architecture = source.architecture
    if config.rotated:
        rms.check_rotatable(VIT.template(architecture))
    return make.make_plan(
        architecture,
        config.fleet,
        groups=config.groups,
        keep=config.keep,
        attention=config.attention,
        rotated=config.rotated,
        seed=config.seed,
        precision=config.precision,
    )


def _check_memory(plan: Plan, pruned: Sequence[Artifact], config: BuildConfig) -> None:
    """Whether each device holds its sub-models as they were pruned.

    Fitted widths take no more memory than the planned ones in fp32; in int8 they may, as embeddings stay in fp32.

    Raises:
        InfeasibleError: a device does not hold its sub-models.
    """
    for load in plan.loads:
        shapes = [read_architecture(weights_path(pruned[i])).model_copy(update={"classes": 0}) for i in load.submodels]
        needed = sum(model_cost(shape, config.precision).peak_memory_bytes for shape in shapes)
        if needed > load.device.memory_bytes:
            raise InfeasibleError(
                f"{load.device.name} has {load.device.memory_mb:g} MB, and its sub-models with fitted widths take "
                f"{needed / 1e6:.3g} MB in {config.precision}; give --widths uniform, which takes what was planned",
                submodel=load.submodels[0],
                constraint="memory",
                shortfall=needed - load.device.memory_bytes,
            )


def _fill_bundle(folder: Path, built: Built, flags: dict[str, Any]) -> Manifest:
    config, source, data = built.config, built.source, built.data
    plan, made = built.plan, built.fused
    infos = []
    for submodel in plan.submodels:
        path = folder / f"submodel-{submodel.id}.onnx"
        architecture = made.architecture(submodel.id)
        cost = model_cost(architecture, built.config.precision)
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


def _judge(test: TestResult, submodels: int, noun: str) -> Verdict:
    correct = test.correct()
    chance = float(np.bincount(test.labels).max() / len(test.labels))
    return judge(correct["base"], correct["fused"], correct.get("n1"), submodels=submodels, chance=chance, noun=noun)


def report_data(built: Built, manifest: Manifest, made: Made, durations: Mapping[str, float]) -> ReportData:
    """What the report shows."""
    test, fused, correct = built.test, built.fused, built.test.correct()
    classes = built.data.classes
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (test.labels, test.fused.argmax(axis=1)), 1)
    own = {submodel.id: test.own_correct(submodel.id, submodel.classes) for submodel in built.plan.submodels}
    return ReportData(
        manifest=manifest,
        verdict=built.verdict,
        rows=result_rows(manifest, correct, own),
        split_gain=Difference.of(correct["fused"], correct["n1"]) if "n1" in correct else None,
        classes=class_rows(classes, test.labels, correct),
        latencies=latency_rows(manifest, built.latencies),
        measured_on=describe_timing(made, what(built.source.preprocessing), built.config.precision),
        mistakes=tuple(
            mistakes.describe(test.fused[i], int(test.labels[i]), test.images.pixels(slice(i, i + 1))[0])
            for i in mistakes.most_confident(test.fused, test.labels)
        ),
        trainings=tuple(_trainings(built)),
        confusion=confusion,
        kept={
            submodel.id: load_kept(artifact)
            for submodel, artifact in zip(built.plan.submodels, fused.pruned, strict=True)
        },
        pruned_by=describe_pruner(built.config),
        made=made,
        inputs=(
            describe_data(built.config, built.source, built.data),
            *(f"Warning: {warning}" for warning in built.data.warnings),
            describe_base(built.source, built.base),
        ),
        seeds={"seed": built.config.seed},
        durations_s=durations,
    )


def _trainings(built: Built) -> Iterator[Training]:
    """The base, the sub-models and the fusion, then N = 1 likewise."""
    images = len(built.data.validation)
    yield Training.of("base", "base model", built.base.artifact.note, images)
    for number, artifact in enumerate(built.fused.recovered):
        yield Training.of(f"sub-model {number}", "sub-models", artifact.note, images)
    yield Training.of("fusion", "fusion", built.fused.fusion.note, images)
    if built.baseline is not None:
        yield Training.of("N = 1", "sub-models", built.baseline.recovered[0].note, images)
        yield Training.of("N = 1, its fusion", "fusion", built.baseline.fusion.note, images)
