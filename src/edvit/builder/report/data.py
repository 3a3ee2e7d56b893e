"""What the report of a build shows, of what was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edvit.builder.built import Built
from edvit.builder.describe import (
    describe_base,
    describe_data,
    describe_pruner,
    describe_timing,
)
from edvit.builder.report import mistakes
from edvit.builder.report.page import Made, ReportData
from edvit.builder.report.rows import class_rows, latency_rows, result_rows
from edvit.builder.report.statistics import Difference
from edvit.builder.report.training import Training
from edvit.builder.stages.prune import load_kept
from edvit.builder.train.temperature import Reliability
from edvit.bundle import (
    Manifest,
)
from edvit.runtime.source import what


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
        reliability=Reliability.of(test.fused, test.labels),
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
