"""The report's figures, as SVG to stand inside an HTML page: no script, no external resource, any colour scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edvit.builder.train.temperature import Reliability

_INK = "#010203"
"""Stands for the page's text colour; replaced by `currentColor`."""
_ACCENT = (0.16, 0.44, 0.72)
# From transparent to the accent, so that it reads on a light page and on a dark one.
_SHADE = LinearSegmentedColormap.from_list("shade", [(*_ACCENT, 0.0), (*_ACCENT, 1.0)])
_STYLE: dict[Any, Any] = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a class may be called `$x`
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "edvit",  # the same figure, the same bytes
}
_EVERY_LABEL = 40
"""Up to this many classes each is labelled; beyond, every tenth or so."""
_COUNTS = 20
"""Up to this many classes the counts are written into the confusion matrix."""
_LABEL_LENGTH = 24
_LINES_NAMED = 12
"""Up to this many trainings in one figure are named."""


def confusion_figure(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """Confusion matrix, shaded by row share. `matrix` is `[true class, predicted class]`, counts."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(classes)
    side = 3.2 + 3.8 * min(size, _EVERY_LABEL) / _EVERY_LABEL
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(side + 1.2, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(share, cmap=_SHADE, vmin=0, vmax=1, interpolation="nearest")
        step = 1 if size <= _EVERY_LABEL else max(1, round(size / 20))
        ticks = list(range(0, size, step))
        labels = [_short(classes[tick]) for tick in ticks]
        small = 9 if size <= _COUNTS else 7
        axes.set_xticks(ticks, labels, rotation=90 if max(map(len, labels)) > 3 else 0, fontsize=small)
        axes.set_yticks(ticks, labels, fontsize=small)
        axes.set(xlabel="predicted class", ylabel="true class")
        if size <= _COUNTS:
            for row, column in np.argwhere(counts > 0):
                ink = "white" if share[row, column] > 0.5 else _INK
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, fontsize=7)
        return _to_svg(figure, "confusion", "Confusion matrix")


def importance_figure(parts: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Share of the base model's importance that is kept, per block: one panel per part (attention, FFN).

    Args:
        parts: title and shares `[sub-models][blocks]`, 0 to 1.
    """
    rows, blocks = len(parts[0][1]), len(parts[0][1][0])
    with matplotlib.rc_context(_STYLE):
        width = min(9.0, 1.6 + 0.38 * blocks * len(parts))
        figure = Figure(figsize=(width, 1.1 + 0.32 * rows), layout="constrained")
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for panel, (title, shares) in zip(panels, parts, strict=True):
            values = np.asarray(shares, dtype=float)
            panel.imshow(values, cmap=_SHADE, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            panel.set_title(title, fontsize=9)
            panel.set_xticks(range(blocks))
            panel.set_yticks(range(rows), [str(row) for row in range(rows)])
            panel.set_xlabel("block")
            for row, column in np.ndindex(*values.shape):
                ink = "white" if values[row, column] > 0.5 else _INK
                text = f"{100 * values[row, column]:.0f}"
                panel.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
        panels[0].set_ylabel("sub-model")
        return _to_svg(figure, "importance", "Share kept per block, percent")


def reliability_figure(reliability: Reliability) -> str:
    """Reliability diagram: the accuracy of answers by their probability; a disc's area is the share of the images."""
    shares = reliability.images / max(1, reliability.images.sum())
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.6, linestyle=":")
        held = reliability.images > 0
        accuracy, probability = reliability.accuracy[held], reliability.probability[held]
        axes.plot(probability, accuracy, color=_ACCENT, linewidth=1.0)
        axes.scatter(probability, accuracy, s=12 + 500 * shares[held], color=_ACCENT, alpha=0.5, linewidths=0)
        axes.set(xlabel="probability of the answer", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
        return _to_svg(figure, "reliability", "Accuracy of answers by their probability")


def channels_figure(kept: Sequence[Sequence[bool]]) -> str:
    """Which residual channels each sub-model keeps: `[sub-models][channels of the base model]`."""
    values = np.asarray(kept, dtype=float)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 0.9 + 0.24 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(values, cmap=_SHADE, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(values)), [str(row) for row in range(len(values))])
        axes.set(xlabel="residual channel of the base model", ylabel="sub-model")
        return _to_svg(figure, "channels", "Residual channels kept by each sub-model")


def curves_figure(title: str, curves: Mapping[str, Sequence[float]], prefix: str) -> str:
    """How trainings went: a line for each.

    Args:
        title: what is drawn.
        curves: a value for each epoch by the training's name; lengths may differ.
        prefix: of the figure's ids.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for name, values in curves.items():
            marker = "." if len(values) == 1 else None
            axes.plot(range(1, len(values) + 1), values, label=_short(name), linewidth=1.0, marker=marker)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if 1 < len(curves) <= _LINES_NAMED:
            axes.legend(frameon=False, fontsize=7, loc="best", labelspacing=0.2)
        return _to_svg(figure, prefix, f"{title} by epoch")


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else name[: _LABEL_LENGTH - 1] + "…"


def _to_svg(figure: Figure, prefix: str, label: str) -> str:
    """The `<svg>` element alone, with ids of its own and in the page's text colour."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The text stays text: that matplotlib's own font lacks a glyph does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}-', svg)
    svg = svg.replace('xlink:href="data:', 'href="data:').replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
