"""The paper's figure: accuracy, latency and size against the number of devices, with their range over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.builds import Row, by_devices

UNSPLIT = {"label": "unsplit", "color": "#777777", "marker": "s"}
SPLIT = {"color": "#2970b8", "marker": "o"}


def figure(rows: Sequence[Row]) -> Figure:
    """Three panels side by side."""
    drawn = Figure(figsize=(10.5, 3.4), layout="constrained")
    accuracy, latency, size = drawn.subplots(1, 3)
    _line(accuracy, rows, lambda row: 100 * row.base, **UNSPLIT)
    _line(accuracy, rows, lambda row: 100 * row.fused, label="fused", **SPLIT)
    accuracy.set_ylabel("test accuracy, percent")
    _line(latency, rows, lambda row: row.base_ms, **{**UNSPLIT, "label": "unsplit, PyTorch"})
    _line(latency, rows, lambda row: row.ms, label="slowest sub-model and fusion", **SPLIT)
    latency.set_ylabel("milliseconds an image, one thread")
    _line(size, rows, lambda row: row.params * row.smaller / 1e6, **UNSPLIT)
    _line(size, rows, lambda row: row.params / 1e6, label="largest sub-model", **SPLIT)
    size.set_ylabel("million parameters a device")
    for axes in (latency, size):
        axes.set_ylim(bottom=0)
    for axes in (accuracy, latency, size):
        axes.set_xlabel("devices")
        axes.set_xticks([count for count, _ in by_devices(rows)])
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _line(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float], **look: Any) -> None:
    counts, means, below, above = [], [], [], []
    for count, group in by_devices(rows):
        values = [value(row) for row in group]
        mean = statistics.mean(values)
        counts.append(count)
        means.append(mean)
        below.append(mean - min(values))
        above.append(max(values) - mean)
    axes.errorbar(counts, means, yerr=[below, above], capsize=3, **look)
