"""A figure of fused test accuracy against the size of a sub-model, from the bundles of several builds.

One line for each pruner and length of recovery; every point is one bundle, or the mean of those that differ by their
seed alone, with their range.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
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


def points(manifests: list[Manifest]) -> dict[tuple[str, int], dict[int, list[float]]]:
    """Fused accuracies by series and by parameters."""
    found: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for manifest in manifests:
        found[series_of(manifest)][largest(manifest)].append(manifest.metric("fused"))
    return found


def table(manifests: list[Manifest]) -> str:
    """The points as text."""
    lines = []
    for (pruner, epochs), at in sorted(points(manifests).items()):
        for params, accuracies in sorted(at.items()):
            low, high = min(accuracies), max(accuracies)
            lines.append(
                f"{pruner:10} {epochs:3} epochs  {params / 1e6:5.2f} M  {np.mean(accuracies):.1%}  "
                f"({low:.1%} - {high:.1%}, {len(accuracies)} seeds)"
            )
    return "\n".join(lines)


def draw(manifests: list[Manifest]) -> Figure:
    """The figure."""
    base = manifests[0].base.params
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colours = {epochs: COLOURS[i] for i, epochs in enumerate(sorted({series_of(m)[1] for m in manifests}))}
    for (pruner, epochs), at in sorted(points(manifests).items(), reverse=True):
        sizes = sorted(at)
        means = [100 * np.mean(at[size]) for size in sizes]
        spread = [[mean - 100 * min(at[s]), 100 * max(at[s]) - mean] for s, mean in zip(sizes, means, strict=True)]
        marker, line = STYLES[pruner]
        label = f"{pruner}, " + (f"{epochs} epochs of recovery" if epochs else "no gradient step")
        axes.errorbar(
            [base / size for size in sizes],
            means,
            yerr=np.array(spread).T,
            label=label,
            color=colours[epochs],
            marker=marker,
            linestyle=line,
            capsize=3,
        )
    axes.axhline(
        100 * np.mean([m.metric("base") for m in manifests]), color="#555555", linewidth=0.8, label="base model"
    )
    axes.set(xlabel="base model's parameters / a sub-model's", ylabel="fused test accuracy, percent")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
