"""What closed-form pruning keeps, on validation images: each way of doing it named by settings of a build.

    python benchmarks/closed_form.py --data imagefolder:cifar10 --weights base.safetensors --img-size 112 \
        "" "calibration=900" "without=fisher" "keep=1/2 widths=uniform" "prune=channels"

For each: the sub-models alone, over all classes and over their own, and a fusion of them that is trained on a few
thousand training images without augmentation. The test split is not read.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from validation_trial import arguments, configure, open_build, settings

from edvit.builder.config import BuildConfig
from edvit.builder.pipeline import prune
from edvit.builder.stages.base import load_extractor
from edvit.builder.stages.prune import Group
from edvit.builder.train import base
from edvit.builder.train.fusion import FusionTraining, Samples, train_fusion
from edvit.builder.train.training import Schedule

FUSION_IMAGES = 3000
FUSION = FusionTraining(Schedule(epochs=30, lr=1e-3, weight_decay=0.05, warmup_epochs=1.0, ema_decay=0.99))
FUSION_SEEDS = 3


@dataclass(frozen=True)
class Kept:
    """Accuracies and one cross-entropy on validation images."""

    alone: list[float]
    own: list[float]
    fused: float
    fused_loss: float
    params: int
    seconds: float
    """Seconds that pruning all groups takes, statistics included unless an earlier variant had the same."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--groups", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            config = configure(args, args.groups, {"recover_epochs": 0, **settings(variant)})
            kept = measure(config, args.work or Path(folder))
            print(
                f"{variant or 'defaults':40} {kept.params / 1e6:5.2f} M  alone {spread(kept.alone)}  "
                f"own classes {spread(kept.own)}  fused {kept.fused:.1%}  cross-entropy {kept.fused_loss:.3f}  "
                f"{kept.seconds:.0f} s",
                flush=True,
            )


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.1%} ({min(values):.1%}-{max(values):.1%})"


def measure(config: BuildConfig, work: Path) -> Kept:
    """Prune every group and see what is left."""
    build = open_build(config, work)
    data, trained, plan = build.data, build.base, build.plan
    groups = [Group(submodel.classes, submodel.architecture.widths) for submodel in plan.submodels]
    start = time.monotonic()
    pruned = prune(build.runner, config, data, trained, groups, source=build.source, device=build.device)
    seconds = time.monotonic() - start
    labels = data.validation.labels
    rows = np.random.default_rng(config.seed).permutation(len(data.train))[:FUSION_IMAGES]
    few = data.train.take(rows)
    alone, own, seen, held_out, heads = [], [], [], [], []
    for group, artifact in zip(groups, pruned, strict=True):
        extractor = load_extractor(artifact, build.source.preprocessing)
        seen.append(base.features_of(extractor, few))
        held_out.append(base.features_of(extractor, data.validation))
        heads.append(extractor.model.head)
        with torch.inference_mode():
            right = extractor.model.head(held_out[-1]).argmax(dim=1).numpy() == labels
        alone.append(float(right.mean()))
        own.append(float(right[np.isin(labels, group.classes)].mean()))
    teacher = base.logits_of(trained.extractor, few)
    accuracies, losses = [], []
    for seed in range(FUSION_SEEDS):
        fusion = train_fusion(
            Samples(torch.cat(seen, dim=1), torch.from_numpy(few.labels)),
            teacher,
            Samples(torch.cat(held_out, dim=1), torch.from_numpy(labels)),
            heads=heads,
            hidden=plan.fusion_hidden,
            how=FUSION,
            seed=seed,
        ).model
        with torch.inference_mode():
            scores = fusion(torch.cat(held_out, dim=1), torch.ones(len(labels), len(groups)))
        accuracies.append(base.accuracy(scores, data.validation))
        losses.append(F.cross_entropy(scores, torch.from_numpy(labels)).item())
    return Kept(
        alone=alone,
        own=own,
        fused=float(np.mean(accuracies)),
        fused_loss=float(np.mean(losses)),
        params=max(submodel.cost.params for submodel in plan.submodels),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
