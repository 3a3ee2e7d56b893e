"""What a cut by class subspace costs: seconds for the statistics and for the cut, and the peak of resident memory.

Random weights and random images: the arithmetic is the same, and nothing is said about accuracy.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.cut import CutGroup, Options, cut
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import collect
from edvit.builder.subspace.widths import fit_group
from edvit.builder.vit import backbone
from edvit.plan.keep import default_keep, heads_pruned_at
from edvit.plan.partition import partition
from edvit.shape.vit import pruned_widths


@dataclass(frozen=True)
class Noise:
    """Random images with evenly spread labels, as `Calibration` reads them."""

    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: np.ndarray) -> np.ndarray:
        shape = (len(index), 3, self.size, self.size)
        return np.random.default_rng(int(index[0])).integers(0, 256, shape, dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--images", type=int, default=1500, help="calibration images in all")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--widths", choices=("uniform", "fitted"), default="fitted")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = backbone.create(args.model, image_size=args.img_size, classes=args.classes).eval()
    base = to_rms(model)
    del model
    shape = backbone.describe(base)
    widths = pruned_widths(shape.widths, heads_pruned_at(default_keep(shape.heads), shape.heads))
    groups = [CutGroup(classes, widths) for classes in partition(args.classes, args.groups, args.seed)]
    noise = Noise(np.arange(args.images, dtype=np.int64) % args.classes, args.img_size)
    calibration = Calibration(noise, (0.5,) * 3, (0.5,) * 3)

    start = time.monotonic()
    sums = collect(base, calibration, gradients=True, seed=args.seed)
    collected = time.monotonic()
    options = Options(fisher=0.3)
    if args.widths == "fitted":
        groups = [fit_group(base, sums, calibration, group, options, seed=args.seed) for group in groups]
    fitted = time.monotonic()
    cut(base, sums, calibration, groups, options, seed=args.seed)
    done = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{args.model} at {args.img_size} px, {args.images} images, {args.groups} groups, d {widths.dim}")
    print(f"threads {torch.get_num_threads()}, seed {args.seed}")
    print(f"statistics with gradients  {collected - start:8.1f} s, for all groups")
    for what, seconds in ((f"{args.widths} widths", fitted - collected), ("cut", done - fitted)):
        print(f"{what:26} {seconds:8.1f} s, {seconds / args.groups:.1f} s a group")
    print(f"in all                     {done - start:8.1f} s")
    print(f"peak resident memory       {peak / 1e9:8.2f} GB, the base model's weights and torch included")


if __name__ == "__main__":
    main()
