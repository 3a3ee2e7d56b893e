"""What recipes of recovery are worth, on validation images: each named by settings of a build, and its optimiser.

    python benchmarks/recovery.py --data imagefolder:cifar10 --weights base.safetensors --img-size 112 \
        "recover_epochs=8 optimizer=adamw recover_lr=5e-4" "recover_epochs=8" "recover_epochs=12 mix=0.5 strength=1.75"

One sub-model for all classes, one recipe after the other, on one thread. The test split is not read.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from validation_trial import arguments, configure, open_build, settings

from edvit.builder.config import BuildConfig
from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.models import checkpoint
from edvit.builder.stages import prepare, split
from edvit.builder.stages.prune import Group, load_rotation, prune
from edvit.builder.train import base
from edvit.builder.train.device import devices
from edvit.builder.train.recover import recover, soft_loss
from edvit.builder.vit.backbone import FeatureExtractor


@dataclass(frozen=True)
class Recovered:
    """Of validation images; cross-entropy with the labels, KL to the base model's scores."""

    right: float
    loss: float
    divergence: float
    seconds: float
    """Of the training."""


def main() -> None:
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            chosen = settings(variant)
            optimizer = chosen.pop("optimizer", "nadamuon")
            found = measure(configure(args, 1, chosen), optimizer, args.work or Path(folder))
            print(
                f"{variant or 'defaults':60} {found.right:.1%}  cross-entropy {found.loss:.3f}  "
                f"KL {found.divergence:.4f}  {found.seconds:.0f} s",
                flush=True,
            )


def measure(config: BuildConfig, optimizer: Any, work: Path) -> Recovered:
    """Prune one sub-model for all classes and train it."""
    build = open_build(config, work)
    context, data, trained, plan = build.context, build.data, build.trained, build.plan
    taught = prepare.run_teacher(context, data, trained)
    group = Group(plan.submodels[0].classes, plan.submodels[0].architecture.widths)
    (pruned,) = prune(context, data, trained, [group])
    mean, std = context.source.preprocessing.mean, context.source.preprocessing.std
    start = time.monotonic()
    with torch_threads(1):
        model = recover(
            checkpoint.load_model(prepare.weights_path(pruned)),
            group.classes,
            prepare.training_views(config, data),
            taught.open(),
            replace(split.recovery(config), optimizer=optimizer),
            rotation=load_rotation(pruned),
            blocks=taught.blocks,
            mean=mean,
            std=std,
            seed=config.seed,
            device=devices(config.device, config.amp)[0],
        )
    seconds = time.monotonic() - start
    scores = base.logits_of(FeatureExtractor(model, mean, std), data.validation)
    wanted = base.logits_of(trained.extractor, data.validation)
    return Recovered(
        right=base.accuracy(scores, data.validation),
        loss=F.cross_entropy(scores, torch.from_numpy(data.validation.labels)).item(),
        divergence=soft_loss(scores, wanted, 1.0).item(),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
