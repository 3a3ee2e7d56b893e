"""Figures of a comparison: accuracy against size and against latency, bytes on the wire, energy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.compare.comparison import Comparison
from edvit.units import si

BLUE, LIGHT, RED, ROSE, GREEN, VIOLET, BLACK, GREY = (
    "#2970b8", "#7fb0de", "#c8553d", "#e3a597", "#5b8c5a", "#7d5ba6", "#333333", "#999999"
)  # fmt: skip
LOOKS = {
    "subspace": (BLUE, "o"),
    "subspace-int8": (LIGHT, "o"),
    "channels": (RED, "s"),
    "channels-int8": (ROSE, "s"),
    "split-cnn": (GREEN, "^"),
    "split-snn": (VIOLET, "v"),
    "whole-torch": (BLACK, "X"),
    "whole": (BLACK, "P"),
    "whole-int8": (GREY, "P"),
    "small": (BLUE, "*"),
    "compact": (GREEN, "*"),
    "ensemble": (LIGHT, "*"),
    "pipeline": (GREY, "D"),
    "tokens": (GREY, "h"),
}
"""Colour and marker of each system: the same colour for what is of a kind."""


def scatters(comparison: Comparison, link: str) -> Figure:
    """Test accuracy against a device's file, and against the latency over one link, both on logarithmic axes."""
    drawn = Figure(figsize=(10.5, 4.2), layout="constrained")
    size, latency = drawn.subplots(1, 2, sharey=True)
    for system in comparison.systems:
        colour, marker = LOOKS[system]
        ones = comparison.of(system)
        accuracy = [100 * one.accuracy for one in ones]
        mean = statistics.mean(accuracy)
        look: Any = {"color": colour, "marker": marker, "linestyle": "none"}
        error = [[mean - min(accuracy)], [max(accuracy) - mean]]
        size.errorbar(max(one.bytes for one in ones) / 1e6, mean, yerr=error, capsize=3, label=system, **look)
        latency.errorbar(1e3 * comparison.over(system, link).latency_s, mean, yerr=error, capsize=3, **look)
    size.set_ylabel("test accuracy, percent")
    size.set_xlabel("megabytes a device")
    latency.set_xlabel(f"milliseconds an image over {link}, {comparison.over(comparison.systems[0], link).how}")
    for axes in (size, latency):
        _logarithmic(axes)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    return drawn


def bars(comparison: Comparison) -> Figure:
    """Payload bytes on the wire and joules of arithmetic for one image."""
    drawn = Figure(figsize=(10.5, 0.6 + 0.32 * len(comparison.systems)), layout="constrained")
    wire, energy = drawn.subplots(1, 2, sharey=True)
    measured = {system: comparison.of(system) for system in comparison.systems}
    wires = {name: statistics.mean(one.exchange.wire_bytes for one in ones) for name, ones in measured.items()}
    joules = {name: statistics.mean(one.operations.joules for one in ones) for name, ones in measured.items()}
    _bars(wire, wires, "B", "payload on the wire, an image")
    _bars(energy, joules, "J", "arithmetic, an image, all devices")
    wire.invert_yaxis()
    return drawn


def _bars(axes: Axes, values: Mapping[str, float], unit: str, label: str) -> None:
    """With the values as text, and no scale: they span orders of magnitude, and a bar on a logarithm starts nowhere."""
    drawn = axes.barh(list(values), list(values.values()), color=[LOOKS[name][0] for name in values])
    axes.bar_label(drawn, [si(value, unit) for value in values.values()], padding=3, fontsize=8)
    axes.set_xlabel(label)
    axes.set_xticks([])
    axes.margins(x=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
