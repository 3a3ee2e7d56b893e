"""From training data to a bundle, top to bottom: data, base, partition, prune, recover, export, fuse, test."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edvit.builder.built import Built
from edvit.builder.config import BuildConfig
from edvit.builder.describe import (
    describe_base,
    describe_data,
    describe_groups,
    describe_submodels,
    describe_test,
    describe_widths,
)
from edvit.builder.jobs import parallel, ray_cluster
from edvit.builder.jobs.artifacts import Artifact, WorkFolder
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner
from edvit.builder.manifest import fill_bundle
from edvit.builder.models.checkpoint import read_architecture
from edvit.builder.models.family import VIT
from edvit.builder.report.data import report_data
from edvit.builder.report.latency import measure_latencies
from edvit.builder.report.machine import cpu
from edvit.builder.report.page import Made, write_report
from edvit.builder.report.verdict import Verdict, judge
from edvit.builder.stages import base as base_stage
from edvit.builder.stages import prune_channels, prune_subspace
from edvit.builder.stages.base import Base, Start, weights_path
from edvit.builder.stages.data import Data, class_weights, decode, split_training, training_views
from edvit.builder.stages.export import export, quantise
from edvit.builder.stages.fuse import Fused, fuse_job, fusion_views, most_fusion_views
from edvit.builder.stages.prune import Group
from edvit.builder.stages.recover import recover, recovery
from edvit.builder.stages.source import Source, open_source
from edvit.builder.stages.teacher import teach
from edvit.builder.stages.test import TestResult, export_base, open_test, run_test
from edvit.builder.subspace import rms
from edvit.builder.train.device import TorchDevice, devices
from edvit.builder.work_size import DEFAULT_SHARE, WorkSize, fixed_bytes, work_size
from edvit.bundle import (
    Bundle,
    Manifest,
    check_target,
    clear_leftovers,
    write_bundle,
)
from edvit.errors import InfeasibleError
from edvit.inputs.datasets import check_apart, check_outside
from edvit.plan import make
from edvit.plan.cost import model_cost
from edvit.plan.plan import Plan
from edvit.runtime.source import what

REPORT = "report.html"


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
    # A folder that the next run takes for a class would keep the build from going on.
    check_apart(config.data, "-o", out)
    target = check_target(out)
    root = (work or target.with_name(f"{target.name}-work")).absolute()
    check_apart(config.data, "--work", root)
    if config.unlabeled is not None:
        check_outside(config.unlabeled, "-o", out)
        check_outside(config.unlabeled, "--work", root)
    # What is missing must come out before anything is decoded.
    where = devices(config.device, config.amp)
    source = open_source(config)
    plan = make_plan(config, source)
    start = base_stage.load(config, source)
    prune_subspace.check_calibration(config, source, _wanted(config, plan))
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
            out=target,
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
    files = quantise(runner, exported, config.precision, train=data.train, validation=data.validation)

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
        manifest = fill_bundle(folder, built, flags)
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

    Fitted widths take no more memory than the planned ones in fp32; in int8 and int4 they may, as what is not
    quantised takes four bytes a value.

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


def _judge(test: TestResult, submodels: int, noun: str) -> Verdict:
    correct = test.correct()
    chance = float(np.bincount(test.labels).max() / len(test.labels))
    return judge(correct["base"], correct["fused"], correct.get("n1"), submodels=submodels, chance=chance, noun=noun)
