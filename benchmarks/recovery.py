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
from edvit.builder.pipeline import prune
from edvit.builder.stages.base import weights_path
from edvit.builder.stages.data import training_views
from edvit.builder.stages.prune import Group, load_rotation
from edvit.builder.stages.recover import recovery
from edvit.builder.stages.teacher import teach
from edvit.builder.train import base
from edvit.builder.train.recover import recover, soft_loss
from edvit.builder.train.teacher import stream_blocks
from edvit.builder.vit.backbone import FeatureExtractor


@dataclass(frozen=True)
class Recovered:
    """How good sub-models are on validation images: cross-entropy with the labels, KL to the base model's scores."""

    right: float
    loss: float
    divergence: float
    seconds: float
    """Seconds that the training takes."""


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
    data, trained, plan = build.data, build.base, build.plan
    how, views = build.source.preprocessing, training_views(config, data)
    blocks = stream_blocks(plan.base, len(data.train), config.resolved_views)
    taught = teach(build.runner, config, trained, views, blocks=blocks, preprocessing=how, devices=[build.device])
    group = Group(plan.submodels[0].classes, plan.submodels[0].architecture.widths)
    (pruned,) = prune(build.runner, config, data, trained, [group], source=build.source, device=build.device)
    mean, std = how.mean, how.std
    start = time.monotonic()
    with torch_threads(1):
        model = recover(
            checkpoint.load_model(weights_path(pruned)),
            group.classes,
            views,
            taught.open(),
            replace(recovery(config), optimizer=optimizer),
            rotation=load_rotation(pruned),
            blocks=taught.blocks,
            mean=mean,
            std=std,
            seed=config.seed,
            device=build.device,
        ).model
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
