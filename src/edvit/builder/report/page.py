"""`report.html`: what a build reached, for people; one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edvit.builder.models.family import AnyWidths, Kept
from edvit.builder.report import figures
from edvit.builder.report.mistakes import Mistake
from edvit.builder.report.rows import ClassRow, LatencyRow, ResultRow, RowKind
from edvit.builder.report.statistics import Difference, Share, p_text
from edvit.builder.report.training import Training, curve_panels
from edvit.builder.report.verdict import Verdict
from edvit.builder.train.temperature import Reliability
from edvit.bundle import Manifest
from edvit.shape.conv import FilterWidths
from edvit.shape.vit import Widths
from edvit.units import counted, si


@dataclass(frozen=True)
class Made:
    """When, where and with what command a bundle was built.

    Attributes:
        date: with a time zone.
        cpu: the processor.
        command: one line to copy; None where the build was called from Python.
    """

    date: datetime
    cpu: str
    command: str | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows. Only the manifest is needed."""

    manifest: Manifest
    verdict: Verdict | None = None
    rows: tuple[ResultRow, ...] = ()
    split_gain: Difference | None = None
    """The fused answers against those of N = 1."""
    classes: tuple[ClassRow, ...] = ()
    latencies: tuple[LatencyRow, ...] = ()
    measured_on: str | None = None
    """Machine and method behind the measured latencies."""
    mistakes: tuple[Mistake, ...] = ()
    """The fused answer's most confident ones, in their order."""
    trainings: tuple[Training, ...] = ()
    confusion: npt.NDArray[np.int64] | None = None
    reliability: Reliability | None = None
    """`[true class, predicted class]`, counts on the test split."""
    kept: Mapping[int, Kept] = field(default_factory=dict)
    """What pruning left, by sub-model."""
    pruned_by: str | None = None
    """How, e.g. `channels, by fisher-kl`."""
    made: Made | None = None
    inputs: tuple[str, ...] = ()
    """What a reader should know of the data and of the base model's weights: how they were split, what was left out."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    durations_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds per build stage."""


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
        si=si,
        counted=counted,
        percent=_percent,
        share=_share,
        interval=_interval,
        value=_value,
        points=_points,
        p=p_text,
        duration=_duration,
    )
    manifest = report.manifest
    return environment.get_template("page.html.j2").render(
        report=report,
        manifest=manifest,
        headlines=_headlines(report),
        noun="image" if manifest.preprocessing.spectrogram is None else "sound",
        has_own=any(row.own is not None for row in report.rows),
        has_n1=any(row.n1 is not None for row in report.classes),
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
    fused = _of_kind(report, "fused")
    lines = []
    if fused is not None:
        submodels = counted(len(manifest.submodels), "sub-model")
        label = f"fused test accuracy ({_unbroken(_interval(fused.share))}), {submodels}"
        lines.append(_Headline(_share(fused.share), label))
        if fused.against_base is not None:
            lines.append(_gap(fused.against_base, "against the base model"))
    if report.split_gain is not None:
        lines.append(_gap(report.split_gain, "against N = 1 at the same width: what splitting buys"))
    largest = max(submodel.params for submodel in manifest.submodels)
    lines.append(
        _Headline(f"{manifest.base.params / largest:.1f}×", f"fewer parameters per device, {si(largest)} each")
    )
    measured = next((row.faster for row in report.latencies if row.faster is not None), None)
    if measured is not None:
        lines.append(
            _Headline(f"{measured:.1f}×", "as fast as the base in what runs it faster; measured here, no network")
        )
    lines.append(_Headline(si(manifest.plan.latency_s, "s"), "per image, predicted for this fleet"))
    missing = [row.share for row in report.rows if row.kind == "missing"]
    if missing:
        worst = min(missing, key=lambda share: share.correct)
        lines.append(_Headline(_share(worst), f"at worst with one device missing ({_unbroken(_interval(worst))})"))
    return lines


def _gap(difference: Difference, label: str) -> _Headline:
    return _Headline(f"{_points(difference.points)} points", f"{label} ({_unbroken(p_text(difference.p))})")


def _unbroken(text: str) -> str:
    """A text within which no line ends: neither at a space nor after a dash."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("–", "–\N{WORD JOINER}")


def _of_kind(report: ReportData, kind: RowKind) -> ResultRow | None:
    return next((row for row in report.rows if row.kind == kind), None)


def _figures(report: ReportData) -> dict[str, Markup]:
    """Inline SVG by name; a figure without data is absent."""
    drawn = {}
    if report.confusion is not None:
        drawn["confusion"] = figures.confusion_figure(report.confusion, report.manifest.data.classes)
    if panels := curve_panels(report.trainings):
        svgs = (figures.curves_figure(title, curves, f"curve{i}") for i, (title, curves) in enumerate(panels))
        drawn["curves"] = "".join(svgs)
    if report.reliability is not None:
        drawn["reliability"] = figures.reliability_figure(report.reliability)
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


def _share(share: Share) -> str:
    """The accuracy in percent, or a dash where there are no images."""
    return "–" if share.value is None else _percent(share.value)


def _interval(share: Share) -> str:
    """Its interval, as `97.6 – 99.7 %`; nothing where there are no images."""
    low, high = share.interval
    return f"{100 * low:.1f} – {100 * high:.1f} %" if share.images else ""


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
