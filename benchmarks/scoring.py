"""What scoring every component takes by Fisher-KL, and what exact KL would: seconds for an image, peak memory.

    python benchmarks/scoring.py --model vit_small_patch16_224 vit_base_patch16_224 vit_large_patch16_224 --images 4

Random weights and images: the arithmetic is the same. Exact KL removes one component at a time, and runs the model from
its block on: one such run is timed at three depths, and the sum over all components is extrapolated along the line
through them. Every model in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from edvit.builder.vit import backbone, importance
from edvit.shape.vit import Architecture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=4, help="at a time, and in all")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if len(args.model) > 1:
        for name in args.model:
            options = ["--classes", str(args.classes), "--images", str(args.images), "--threads", str(args.threads)]
            subprocess.run([sys.executable, __file__, "--model", name, *options], check=True)
        return
    torch.set_num_threads(args.threads)
    measure(args.model[0], args.classes, args.images)


def measure(name: str, classes: int, count: int) -> None:
    """Print one model's figures."""
    model = backbone.create(name, classes=classes).eval()
    architecture = backbone.describe(model)
    images = torch.randn(
        count, architecture.channels, *architecture.image_size, generator=torch.Generator().manual_seed(0)
    )
    start = time.perf_counter()
    importance.score(model, images, batch_size=count)
    fisher = (time.perf_counter() - start) / count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    exact = exact_seconds(model, architecture, images) / count
    print(
        f"{name:24} {components(architecture):7,} components  fisher-kl {fisher:6.1f} s an image, "
        f"peak {peak / 1e9:.2f} GB at {count} images  exact kl {exact / 3600:7.2f} h an image  {exact / fisher:7,.0f}x"
    )


def components(architecture: Architecture) -> int:
    """Residual channels, attention dimensions, heads and FFN units."""
    per_block = (block.attention + block.heads + block.hidden for block in architecture.widths.blocks)
    return architecture.widths.dim + sum(per_block)


@torch.inference_mode()
def exact_seconds(model: torch.nn.Module, architecture: Architecture, images: torch.Tensor) -> float:
    """Seconds that exact KL over all components takes, from three timed runs."""
    stream, depth = backbone.embed(model, images), len(architecture.widths.blocks)
    firsts, timed = (0, depth // 2, depth - 1), []
    for first in firsts:
        start = time.perf_counter()
        backbone.classify(model, stream, first)
        timed.append(time.perf_counter() - start)
    slope, intercept = np.polyfit(firsts, timed, 1)
    seconds = architecture.widths.dim * intercept
    for index, block in enumerate(architecture.widths.blocks):
        seconds += (block.attention + block.heads + block.hidden) * (intercept + slope * index)
    return float(seconds)


if __name__ == "__main__":
    main()
