"""The report's tables of accuracy and latency, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edvit.builder.report.latency import BASE, Latency, faster_base
from edvit.builder.report.statistics import Correct, Difference, Share
from edvit.bundle import Manifest
from edvit.units import counted

RowKind = Literal["base", "fused", "single", "missing", "submodel"]


@dataclass(frozen=True)
class ResultRow:
    """One line of the accuracy table.

    Attributes:
        kind: `single` is N = 1 at the same width, `missing` the fusion without one device.
        name: as people read it.
        share: accurate answers over all classes of the test split.
        against_base: the same answers against the base model's; None in its own row.
        own: a sub-model's accurate answers to the images of its own classes.
        params: parameters of the largest model that one device holds.
        size_bytes: bytes of that model's parameters or file.
    """

    kind: RowKind
    name: str
    share: Share
    against_base: Difference | None = None
    own: Share | None = None
    params: int | None = None
    size_bytes: int | None = None


def result_rows(
    manifest: Manifest, correct: Mapping[str, Correct], own: Mapping[int, Correct] | None = None
) -> tuple[ResultRow, ...]:
    """The accuracy table, in reading order.

    Args:
        correct: by name of the metric, `base`, `fused`, `n1`, `fused-without-<device>` and `submodel-<id>`; what was
            not measured has no row.
        own: sub-model id -> its answers to the images of its own classes.
    """
    rows = []
    for kind, metric, name in _lines(manifest):
        if metric not in correct:
            continue
        submodel = manifest.submodels[int(metric.removeprefix("submodel-"))] if kind == "submodel" else None
        held = submodel or max(manifest.submodels, key=lambda one: one.params)
        base, answers = manifest.base, (own or {}).get(-1 if submodel is None else submodel.id)
        rows.append(
            ResultRow(
                kind=kind,
                name=name,
                share=Share.of(correct[metric]),
                against_base=None if kind == "base" else Difference.of(correct[metric], correct["base"]),
                own=None if answers is None else Share.of(answers),
                params=base.params if kind == "base" else held.params,
                size_bytes=base.bytes if kind == "base" else held.model.bytes,
            )
        )
    return tuple(rows)


def _lines(manifest: Manifest) -> Iterator[tuple[RowKind, str, str]]:
    """Kind, metric and name of every row that there may be."""
    used = [d.name for d in manifest.plan.fleet.devices if any(p.device == d.name for p in manifest.plan.placed)]
    yield "base", "base", "base, one device"
    yield "fused", "fused", f"fused, {counted(len(used), 'device')}"
    yield "single", "n1", "N = 1, same width"
    for name in used:
        yield "missing", f"fused-without-{name}", f"fused without {name}"
    for submodel in manifest.submodels:
        yield "submodel", f"submodel-{submodel.id}", f"sub-model {submodel.id} alone"


@dataclass(frozen=True)
class ClassRow:
    """Accuracy on the test images of one class."""

    name: str
    base: Share
    fused: Share
    n1: Share | None = None


def class_rows(
    classes: Sequence[str], labels: npt.NDArray[np.int64], correct: Mapping[str, Correct]
) -> tuple[ClassRow, ...]:
    """A row for each class, the fused answer's least accurate first; a class without test images is last.

    Args:
        labels: class indices of the test images `[n]`.
        correct: as for `result_rows`; `n1` may be absent.
    """

    def shares(metric: str) -> list[Share]:
        return [Share.of(correct[metric][labels == index]) for index in range(len(classes))]

    n1 = shares("n1") if "n1" in correct else [None] * len(classes)
    rows = [ClassRow(*line) for line in zip(classes, shares("base"), shares("fused"), n1, strict=True)]
    return tuple(sorted(rows, key=lambda row: (not row.fused.images, row.fused.value or 0.0)))


@dataclass(frozen=True)
class LatencyRow:
    """One line of the latency table.

    Attributes:
        name: as people read it.
        predicted_s: for the fleet, by the plan; None where the plan does not predict it.
        measured: on the machine that built the bundle.
        faster: how many times as fast as the base in what runs it faster; None for the base itself.
    """

    name: str
    predicted_s: float | None
    measured: Latency
    faster: float | None


def latency_rows(manifest: Manifest, latencies: Mapping[str, Latency]) -> tuple[LatencyRow, ...]:
    """The latency table, in reading order; `latencies` as `measure_latencies` gives them."""
    base = faster_base(latencies).median_s
    predicted = {"fused": manifest.plan.latency_s}
    predicted |= {f"submodel-{line.submodel}": line.latency_s for line in manifest.plan.placed}
    names = {metric: name for _, metric, name in _lines(manifest)} | {name: name for name in BASE}
    return tuple(
        LatencyRow(
            name=names[metric],
            predicted_s=predicted.get(metric),
            measured=measured,
            faster=None if metric in BASE else base / measured.median_s,
        )
        for metric, measured in latencies.items()
    )
