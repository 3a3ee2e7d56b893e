"""Figures of a comparison: accuracy against size and against latency, bytes on the wire, energy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edvit.bench.compare import Comparison

COLOURS = ("#2970b8", "#7fb0de", "#c8553d", "#e3a597", "#5b8c5a", "#7d5ba6", "#333333", "#777777", "#aaaaaa")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d", "p")


def scatters(comparison: Comparison, link: str) -> Figure:
    """Test accuracy against a device's file, and against the latency over one link, both on logarithmic axes."""
    drawn = Figure(figsize=(10.5, 4.2), layout="constrained")
    size, latency = drawn.subplots(1, 2, sharey=True)
    for index, system in enumerate(comparison.systems):
        ones = comparison.of(system)
        accuracy = [100 * one.accuracy for one in ones]
        mean = statistics.mean(accuracy)
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": "none"}
        error = [[mean - min(accuracy)], [max(accuracy) - mean]]
        size.errorbar(max(one.bytes for one in ones) / 1e6, mean, yerr=error, capsize=3, label=system, **look)
        latency.errorbar(1e3 * comparison.over(system, link).latency_s, mean, yerr=error, capsize=3, **look)
    size.set_ylabel("test accuracy, percent")
    size.set_xlabel("megabytes a device")
    latency.set_xlabel(f"milliseconds an image over {link}, {comparison.over(comparison.systems[0], link).how}")
    for axes in (size, latency):
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    return drawn


def bars(comparison: Comparison) -> Figure:
    """Payload bytes on the wire and joules of arithmetic for one image, on logarithmic axes."""
    drawn = Figure(figsize=(10.5, 0.6 + 0.32 * len(comparison.systems)), layout="constrained")
    wire, energy = drawn.subplots(1, 2, sharey=True)
    mean_of = {system: comparison.of(system) for system in comparison.systems}
    wires = {system: statistics.mean(one.exchange.wire_bytes for one in ones) / 1e3 for system, ones in mean_of.items()}
    joules = {system: 1e6 * statistics.mean(one.operations.joules for one in ones) for system, ones in mean_of.items()}
    _bars(wire, wires, "kilobytes on the wire an image")
    _bars(energy, joules, "microjoules of arithmetic an image, all devices")
    wire.invert_yaxis()
    return drawn


def _bars(axes: Axes, values: Mapping[str, float], label: str) -> None:
    axes.barh(list(values), list(values.values()), color=COLOURS[0])
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
