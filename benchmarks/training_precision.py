"""Training in bfloat16 against float32, side by side: a step of the base model, and a step of a sub-model's recovery.

    python benchmarks/training_precision.py --model deit_tiny_patch16_224 --img-size 112

Random weights and images: the arithmetic is the same. Each round times every row, so that a busy machine slows all of
them. Where the processor has no instructions for bfloat16, it is slower, and `edvit build` does not use it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from edvit.builder.train.device import TorchDevice, cpu_has_bfloat16
from edvit.builder.train.training import Schedule, train
from edvit.builder.vit import backbone
from edvit.plan.keep import heads_pruned_at, parse_keep
from edvit.shape.vit import pruned_widths

PRECISIONS = {"float32": TorchDevice("cpu"), "bfloat16": TorchDevice("cpu", mixed=True)}
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--keep", default="1/3")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="a round and row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.model} at {args.img_size} px, keep {args.keep}, {args.threads} threads, batches of {args.batch_size}")
    print(f"instructions for bfloat16: {'yes' if cpu_has_bfloat16() else 'no'}")
    base = backbone.create(args.model, image_size=args.img_size, classes=CLASSES)
    shape = backbone.describe(base)
    widths = pruned_widths(shape.widths, heads_pruned_at(parse_keep(args.keep), shape.keep_steps, "dims"), "dims")
    small = backbone.create(args.model, image_size=args.img_size, classes=CLASSES, widths=widths, rotated=True)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
    for name, model in (("base", base), ("sub-model", small)):
        seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for round_ in range(args.rounds + 1):
            for precision, device in PRECISIONS.items():
                taken = step_seconds(model, images, device, args.steps)
                if round_:  # the first one warms up
                    seconds[precision].append(taken)
        show(name, seconds, args.batch_size)


def step_seconds(model: torch.nn.Module, images: torch.Tensor, device: TorchDevice, steps: int) -> float:
    """Seconds of one step of the loop that every stage trains with."""
    labels = torch.arange(len(images)) % CLASSES
    model = copy.deepcopy(model)  # placing a model on a device may change how it computes attention

    def batches(_epoch: int, _first: int) -> Iterator[torch.Tensor]:
        for _ in range(steps):
            yield images

    def loss_of(module: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(module(batch), labels)

    how = Schedule(epochs=1, lr=1e-6, ema_decay=0.99)
    start = time.perf_counter()
    draws = torch.Generator()
    train(model, batches, loss_of, steps_per_epoch=steps, schedule=how, generator=draws, device=device)
    return (time.perf_counter() - start) / steps


def show(name: str, seconds: dict[str, list[float]], batch: int) -> None:
    """One line a precision."""
    ratios = np.array(seconds["float32"]) / np.array(seconds["bfloat16"])
    for precision, times in seconds.items():
        median = statistics.median(times)
        line = (
            f"{name:10} {precision:9} {median * 1e3:6.0f} ms a step ({min(times) * 1e3:.0f} - {max(times) * 1e3:.0f})"
        )
        line += f"  {batch / median:5.0f} images/s"
        if precision == "bfloat16":
            line += f"  {np.median(ratios):.2f}x faster ({ratios.min():.2f} - {ratios.max():.2f})"
        print(line)


if __name__ == "__main__":
    main()
