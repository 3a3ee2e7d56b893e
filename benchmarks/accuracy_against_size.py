"""A figure of fused test accuracy against the size of a sub-model, from the bundles of several builds.

One line for each pruner and length of recovery; every point is one bundle, or the mean of those that differ by their
seed alone, with their range.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from edvit.bundle import Manifest, read_bundle

STYLES = {"subspace": ("o", "-"), "channels": ("s", "--")}
COLOURS = ["#2970b8", "#c8553d", "#5b8c5a", "#7d5ba6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("-o", "--out", type=Path, required=True, help="SVG to write")
    args = parser.parse_args()
    manifests = [read_bundle(path).manifest for path in args.bundles]
    print(table(manifests))
    draw(manifests).savefig(args.out, metadata={"Date": None})


def largest(manifest: Manifest) -> int:
    """Parameters of the largest sub-model."""
    return max(submodel.params for submodel in manifest.submodels)


def series_of(manifest: Manifest) -> tuple[str, int]:
    """Pruner and epochs of recovery."""
    return str(manifest.config["prune"]), int(manifest.config["recover_epochs"])


@dataclass(frozen=True)
class Point:
    """Bundles that differ by their seed alone."""

    params: float
    """Parameters of the largest sub-model, mean over the bundles; fitted widths depend on the groups and the seed."""
    fused: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.fused))


def accuracies(manifests: list[Manifest], name: str) -> list[float]:
    """A metric of each that has it."""
    return [found for manifest in manifests if (found := manifest.metric(name)) is not None]


def points(manifests: list[Manifest]) -> dict[tuple[str, int], list[Point]]:
    """By series, the smallest sub-models first."""
    alike: dict[tuple[str, int], dict[str, list[Manifest]]] = defaultdict(lambda: defaultdict(list))
    for manifest in manifests:
        alike[series_of(manifest)][str(manifest.config["keep"])].append(manifest)
    found = {}
    for series, by_keep in alike.items():
        made = [
            Point(float(np.mean([largest(m) for m in seeds])), accuracies(seeds, "fused")) for seeds in by_keep.values()
        ]
        found[series] = sorted(made, key=lambda point: point.params)
    return found


def table(manifests: list[Manifest]) -> str:
    """The points as text."""
    lines = []
    for (pruner, epochs), at in sorted(points(manifests).items()):
        for point in at:
            lines.append(
                f"{pruner:10} {epochs:3} epochs  {point.params / 1e6:5.2f} M  {point.mean:.1%}  "
                f"({min(point.fused):.1%} - {max(point.fused):.1%}, {len(point.fused)} seeds)"
            )
    return "\n".join(lines)


def draw(manifests: list[Manifest]) -> Figure:
    """The figure."""
    base = manifests[0].base.params
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colours = {epochs: COLOURS[i] for i, epochs in enumerate(sorted({series_of(m)[1] for m in manifests}))}
    for (pruner, epochs), at in sorted(points(manifests).items(), reverse=True):
        spread = [[100 * (point.mean - min(point.fused)), 100 * (max(point.fused) - point.mean)] for point in at]
        marker, line = STYLES[pruner]
        label = f"{pruner}, " + (f"{epochs} epochs of recovery" if epochs else "no gradient step")
        axes.errorbar(
            [base / point.params for point in at],
            [100 * point.mean for point in at],
            yerr=np.array(spread).T,
            label=label,
            color=colours[epochs],
            marker=marker,
            linestyle=line,
            capsize=3,
        )
    axes.axhline(
        100 * float(np.mean(accuracies(manifests, "base"))), color="#555555", linewidth=0.8, label="base model"
    )
    axes.set(xlabel="base model's parameters / a sub-model's", ylabel="fused test accuracy, percent")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
