"""What N devices buy over one: bundles of several N and seeds on the same test images, all seeds together.

    python benchmarks/more_devices.py 'bundle-{devices}-s{seed}' --data imagefolder:caltech101 --devices 1 5 10

Each row compares its bundles with those of the first N, seed by seed on the same images; McNemar's exact test counts
the images of all seeds. That an image is counted once a seed makes the answers to it depend on each other; the last
column is therefore a second test that counts each image once: a sign test of how many seeds more are accurate.
*Best alone* is the sub-model that is most accurate on the test images without the others, which nobody can know before:
a bound, not a choice.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from edvit.builder.report.statistics import Difference, p_text
from edvit.bundle import Bundle, read_bundle
from edvit.inputs.datasets import read_split
from edvit.runtime.predictor import LocalPredictor

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="path of a bundle, with {devices} and {seed}")
    parser.add_argument("--data", required=True)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    correct: dict[int, npt.NDArray[np.bool_]] = {}
    for devices in args.devices:
        bundles = [read_bundle(Path(args.pattern.format(devices=devices, seed=seed))) for seed in args.seeds]
        correct[devices] = np.stack([answers(bundle, args.data) for bundle in bundles])
        print(row(devices, bundles, correct[devices], correct[args.devices[0]]), flush=True)


def answers(bundle: Bundle, data: str) -> npt.NDArray[np.bool_]:
    """Whether the bundle's answer to each test image is its label, `[images]`."""
    source, how = read_split(data, "test", None), bundle.manifest.preprocessing
    predictor = LocalPredictor(bundle)
    found = []
    for start in range(0, len(source.labels), BATCH):
        numbers = range(start, min(start + BATCH, len(source.labels)))
        images = np.stack([source.prepared(number, how) for number in numbers])
        found.append(predictor.run(images).indices == source.labels[start : start + BATCH])
    return np.concatenate(found)


def row(devices: int, bundles: list[Bundle], correct: npt.NDArray[np.bool_], first: npt.NDArray[np.bool_]) -> str:
    """What is printed of one N; `correct` and `first` are `[seeds, images]`."""
    accuracies = [100 * of_seed.mean() for of_seed in correct]
    metrics = [{metric.name: 100 * metric.value for metric in bundle.manifest.metrics} for bundle in bundles]
    base = statistics.mean(of["base"] for of in metrics)
    alone = statistics.mean(max(v for name, v in of.items() if name.startswith("submodel-")) for of in metrics)
    largest = max(
        bundle.model_path(one.model).stat().st_size for bundle in bundles for one in bundle.manifest.submodels
    )
    pooled = Difference.of(correct.ravel(), first.ravel())
    spread = 100 * np.sqrt(pooled.more + pooled.less) / pooled.images
    seeds = correct.sum(axis=0) - first.sum(axis=0)
    signs = int((seeds > 0).sum()), int((seeds != 0).sum())
    once = binomtest(*signs).pvalue if signs[1] else 1.0
    return (
        f"N = {devices}: fused {statistics.mean(accuracies):.2f} % ({min(accuracies):.1f} – {max(accuracies):.1f}), "
        f"base {base:.2f} %, best alone {alone:.2f} %, {largest / 1e6:.2f} MB at most a file; "
        f"{pooled.points:+.2f} ± {spread:.2f} points (+{pooled.more} −{pooled.less}, {p_text(pooled.p)}; "
        f"images counted once {p_text(once)})"
    )


if __name__ == "__main__":
    main()
