"""What recipes of recovery are worth, on validation images: each named by settings of a build, and its optimiser.

    python benchmarks/recovery.py --data imagefolder:cifar10 --weights base.safetensors --img-size 112 \
        "recover_epochs=8 optimizer=adamw recover_lr=5e-4" "recover_epochs=8" "recover_epochs=12 mix=0.5 strength=1.75"

One sub-model for all classes, one recipe after the other, on one thread. The test split is not read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from edvit.builder import base, checkpoint, prepare, split
from edvit.builder.artifacts import WorkFolder
from edvit.builder.backbone import FeatureExtractor
from edvit.builder.config import BuildConfig, make_config
from edvit.builder.device import devices
from edvit.builder.parallel import Processes, torch_threads
from edvit.builder.pipeline import make_plan
from edvit.builder.progress import Reporter
from edvit.builder.prune import Group, load_rotation, prune
from edvit.builder.recover import recover, soft_loss
from edvit.fleet import local_fleet


@dataclass(frozen=True)
class Recovered:
    """Of validation images; cross-entropy with the labels, KL to the base model's scores."""

    right: float
    loss: float
    divergence: float
    seconds: float
    """Of the training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="settings as name=value, separated by spaces")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", type=Path, required=True, help="of a base model that knows the classes")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="work folder of a build, to reuse what it has done")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for recipe in args.recipes:
            settings: dict[str, Any] = dict(part.split("=", 1) for part in recipe.split())
            optimizer = settings.pop("optimizer", "nadamuon")
            config = make_config(
                data=args.data,
                model=args.model,
                weights=args.weights,
                image_size=args.img_size,
                fleet=local_fleet(1),
                seed=args.seed,
                **settings,
            )
            found = measure(config, optimizer, args.work or Path(folder))
            print(
                f"{recipe:60} {found.right:.1%}  cross-entropy {found.loss:.3f}  KL {found.divergence:.4f}  "
                f"{found.seconds:.0f} s",
                flush=True,
            )


def measure(config: BuildConfig, optimizer: Any, work: Path) -> Recovered:
    """Prune one sub-model for all classes and train it."""
    source, pool = prepare.open_source(config), Processes(config.workers)
    context = prepare.Context(config, source, WorkFolder(work), Reporter(quiet=True), pool)
    data = prepare.prepare_data(context)
    trained = prepare.prepare_base(context, data)
    plan = make_plan(config, source)
    taught = prepare.run_teacher(context, data, trained)
    group = Group(plan.submodels[0].classes, plan.submodels[0].architecture.widths)
    (pruned,) = prune(context, data, trained, [group])
    mean, std = source.preprocessing.mean, source.preprocessing.std
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
