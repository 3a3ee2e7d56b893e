"""`report.html`: what a build reached, for people; one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edvit.builder.models.family import AnyWidths, Kept
from edvit.builder.report import figures
from edvit.bundle import Manifest
from edvit.shape.conv import FilterWidths
from edvit.shape.vit import Widths
from edvit.units import counted, si

RowKind = Literal["base", "fused", "single", "missing", "submodel"]


@dataclass(frozen=True)
class ResultRow:
    """One line of the accuracy table. What was not measured is None."""

    kind: RowKind
    """`single` is N = 1 at the same width, `missing` the fusion without one device."""
    name: str
    accuracy: float | None = None
    """Over all classes, on the test split, 0 to 1."""
    own_accuracy: float | None = None
    """A sub-model's accuracy on the images of its own classes, 0 to 1."""
    params: int | None = None
    """Parameters of the largest model that one device holds."""
    size_bytes: int | None = None
    """Bytes of that model's parameters or file."""
    predicted_s: float | None = None
    """Latency per image by the plan's formula."""
    measured_s: float | None = None
    """Latency per image as measured; say where in `ReportData.measured_on`."""


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows. Only the manifest is needed."""

    manifest: Manifest
    rows: tuple[ResultRow, ...] = ()
    confusion: npt.NDArray[np.int64] | None = None
    """`[true class, predicted class]`, counts on the test split."""
    kept: Mapping[int, Kept] = field(default_factory=dict)
    """What pruning left, by sub-model."""
    pruned_by: str | None = None
    """How, e.g. `channels, by fisher-kl`."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    measured_on: str | None = None
    """Machine and method behind the measured latencies."""
    durations_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds per build stage."""


def result_rows(
    manifest: Manifest,
    *,
    own_accuracy: Mapping[int, float] | None = None,
    predicted_s: Mapping[str, float] | None = None,
    measured_s: Mapping[str, float] | None = None,
) -> tuple[ResultRow, ...]:
    """The accuracy table from the manifest's test metrics, in reading order.

    Args:
        manifest: with the metrics `base`, `fused`, `n1`, `fused-without-<device>` and `submodel-<id>`; one that was
            not measured has no row.
        own_accuracy: sub-model id -> accuracy on the images of its own classes.
        predicted_s: metric name -> predicted seconds per image; that of `fused` is the plan's.
        measured_s: metric name -> measured seconds per image.
    """
    own = own_accuracy or {}
    predicted = {"fused": manifest.plan.latency_s, **(predicted_s or {})}
    measured = measured_s or {}
    largest = max(manifest.submodels, key=lambda submodel: submodel.params)
    base_size = (manifest.base.params, manifest.base.bytes)
    largest_size = (largest.params, largest.model.bytes)
    used = [d.name for d in manifest.plan.fleet.devices if any(p.device == d.name for p in manifest.plan.placed)]
    lines: list[tuple[RowKind, str, str, tuple[int, int], float | None]] = [
        ("base", "base", "base, one device", base_size, None),
        ("fused", "fused", f"fused, {counted(len(used), 'device')}", largest_size, None),
        ("single", "n1", "N = 1, same width", largest_size, None),
        *(("missing", f"fused-without-{name}", f"fused without {name}", largest_size, None) for name in used),
        *(
            ("submodel", f"submodel-{s.id}", f"sub-model {s.id} alone", (s.params, s.model.bytes), own.get(s.id))
            for s in manifest.submodels
        ),
    ]
    rows = []
    for kind, metric, name, (params, size), own_share in lines:
        accuracy = manifest.metric(metric)
        if accuracy is not None:
            rows.append(
                ResultRow(
                    kind=kind,
                    name=name,
                    accuracy=accuracy,
                    own_accuracy=own_share,
                    params=params,
                    size_bytes=size,
                    predicted_s=predicted.get(metric),
                    measured_s=measured.get(metric),
                )
            )
    return tuple(rows)


def write_report(path: Path, report: ReportData) -> None:
    """Write the report as one HTML file (UTF-8)."""
    path.write_text(render(report), encoding="utf-8")


def render(report: ReportData) -> str:
    """The report's HTML. Names from the data are escaped; figures are inline SVG."""
    environment = Environment(
        loader=PackageLoader("edvit.builder.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        si=si, counted=counted, percent=_percent, value=_value, points=_points, duration=_duration
    )
    manifest = report.manifest
    return environment.get_template("page.html.j2").render(
        report=report,
        manifest=manifest,
        headlines=_headlines(report),
        rows=[_with_gap(row, _of_kind(report, "base")) for row in report.rows],
        has_measured=any(row.measured_s is not None for row in report.rows),
        has_own=any(row.own_accuracy is not None for row in report.rows),
        figures=_figures(report),
        by_subspace=any(one.energy is not None for one in report.kept.values()),
        pruning=_pruning(manifest),
        stage_names=_stage_names(manifest.base.widths),
        devices=_devices(manifest),
        flags=_flat(manifest.flags),
        config=_flat(manifest.config),
    )


@dataclass(frozen=True)
class _Headline:
    value: str
    label: str


def _headlines(report: ReportData) -> list[_Headline]:
    """The few numbers that a reader came for; those that were not measured are left out."""
    manifest = report.manifest
    base, fused, single = (_of_kind(report, kind) for kind in ("base", "fused", "single"))
    lines = []
    if fused is not None and fused.accuracy is not None:
        label = f"fused test accuracy, {counted(len(manifest.submodels), 'sub-model')}"
        lines.append(_Headline(_percent(fused.accuracy), label))
        if base is not None and base.accuracy is not None:
            gap = 100 * (fused.accuracy - base.accuracy)
            lines.append(_Headline(f"{_points(gap)} points", f"against the base model's {_percent(base.accuracy)}"))
        if single is not None and single.accuracy is not None:
            gap = 100 * (fused.accuracy - single.accuracy)
            lines.append(_Headline(f"{_points(gap)} points", "against N = 1 at the same width: what splitting buys"))
    largest = max(submodel.params for submodel in manifest.submodels)
    lines.append(
        _Headline(f"{manifest.base.params / largest:.1f}×", f"fewer parameters per device, {si(largest)} each")
    )
    lines.append(_Headline(si(manifest.plan.latency_s, "s"), "per image, predicted for this fleet"))
    missing = [row.accuracy for row in report.rows if row.kind == "missing" and row.accuracy is not None]
    if missing:
        lines.append(_Headline(_percent(min(missing)), "at worst with one device missing"))
    return lines


def _of_kind(report: ReportData, kind: RowKind) -> ResultRow | None:
    return next((row for row in report.rows if row.kind == kind), None)


def _with_gap(row: ResultRow, base: ResultRow | None) -> tuple[ResultRow, float | None]:
    """The row and its accuracy less the base model's, in points."""
    if row.kind == "base" or row.accuracy is None or base is None or base.accuracy is None:
        return row, None
    return row, 100 * (row.accuracy - base.accuracy)


def _figures(report: ReportData) -> dict[str, Markup]:
    """Inline SVG by name; a figure without data is absent."""
    drawn = {}
    if report.confusion is not None:
        drawn["confusion"] = figures.confusion_figure(report.confusion, report.manifest.data.classes)
    kept = [report.kept[submodel] for submodel in sorted(report.kept)]
    parts = [
        (title, [list(shares) for shares in column])
        for title, column in (("attention", [one.attention for one in kept]), ("FFN", [one.ffn for one in kept]))
        if column and all(column)
    ]
    if parts:
        drawn["importance"] = figures.importance_figure(parts)
    if kept and all(one.channels for one in kept):
        drawn["channels"] = figures.channels_figure([one.channels for one in kept])
    return {name: Markup(svg) for name, svg in drawn.items()}


@dataclass(frozen=True)
class _Stage:
    """One stage of pruning in one sub-model: width and kept fraction, as text."""

    width: str
    kept: str


@dataclass(frozen=True)
class _Pruned:
    submodel: int
    classes: str
    stages: tuple[_Stage, ...]
    params: int
    kept_params: str


def _pruning(manifest: Manifest) -> list[_Pruned]:
    base = manifest.base
    rows = []
    for submodel in manifest.submodels:
        stages = [
            _Stage(_range(new), _percent(sum(new) / sum(old), 0))
            for new, old in zip(_stage_widths(submodel.widths), _stage_widths(base.widths), strict=True)
        ]
        rows.append(
            _Pruned(
                submodel=submodel.id,
                classes=", ".join(manifest.data.classes[index] for index in submodel.classes),
                stages=tuple(stages),
                params=submodel.params,
                kept_params=_percent(submodel.params / base.params, 1),
            )
        )
    return rows


def _stage_names(widths: AnyWidths) -> tuple[str, ...]:
    return ("Embedding dimension", "Attention width", "FFN units") if isinstance(widths, Widths) else ("Filters",)


def _stage_widths(widths: AnyWidths) -> tuple[list[int], ...]:
    """Embedding dimension, and attention and FFN widths block by block; or filters, set by set."""
    if isinstance(widths, FilterWidths):
        return (list(widths.filters),)
    return (
        [widths.dim],
        [block.attention for block in widths.blocks],
        [block.hidden for block in widths.blocks],
    )


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}–{max(values)}"


@dataclass(frozen=True)
class _DeviceRow:
    name: str
    submodels: str
    memory_bytes: int
    memory_limit: int
    compute_s: float
    energy_j: float
    energy_limit: float | None

    @property
    def memory_share(self) -> float:
        return self.memory_bytes / self.memory_limit


def _devices(manifest: Manifest) -> list[_DeviceRow]:
    rows = []
    for device in manifest.plan.fleet.devices:
        lines = [line for line in manifest.plan.placed if line.device == device.name]
        rows.append(
            _DeviceRow(
                name=device.name,
                submodels=", ".join(str(line.submodel) for line in lines),
                memory_bytes=sum(line.memory_bytes for line in lines),
                memory_limit=device.memory_bytes,
                compute_s=sum(line.latency_s for line in lines),
                energy_j=sum(line.energy_j for line in lines),
                energy_limit=device.energy_j,
            )
        )
    return rows


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as `a.b` and JSON text, in order."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{name}.")
        else:
            lines.append((name, value if isinstance(value, str) else json.dumps(value, default=str)))
    return lines


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def _points(gap: float) -> str:
    """Percentage points with their sign; a true minus, as wide as the plus."""
    return f"{gap:+.1f}".replace("-", "−")


def _duration(seconds: float) -> str:
    """`4.2 s`, `6 min 52 s`, `1 h 04 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _value(value: float | None, unit: str = "") -> str:
    """A number with its unit, or a dash where there is none."""
    return "–" if value is None else si(value, unit)
