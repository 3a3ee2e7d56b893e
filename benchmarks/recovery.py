"""What recipes of recovery are worth, on validation images: each named by settings of a build, and its optimiser.

    python benchmarks/recovery.py --data imagefolder:cifar10 --weights base.safetensors --img-size 112 \
        "recover_epochs=8 optimizer=adamw recover_lr=5e-4" "recover_epochs=8" "recover_epochs=12 mix=0.5 strength=1.75"
    ... "recover_epochs=4" "recover_epochs=4 kept=0" "recover_epochs=4 followed=6,9" "recover_epochs=4 followed=none"

One sub-model for all classes, one recipe after the other, on one thread; each is compared with the first on the same
images. `followed` names the blocks whose streams the sub-model follows, and `kept` the views whose streams are kept:
those of the others are computed. The test split is not read.
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
from edvit.builder.report.statistics import Correct, Difference, p_text
from edvit.builder.stages.base import weights_path
from edvit.builder.stages.data import training_views
from edvit.builder.stages.prune import Group, load_rotation
from edvit.builder.stages.recover import recovery
from edvit.builder.stages.teacher import teach
from edvit.builder.train import base
from edvit.builder.train.recover import recover, soft_loss
from edvit.builder.train.teacher import stream_blocks
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.any import AnyArchitecture


@dataclass(frozen=True)
class Recovered:
    """How good sub-models are on validation images: cross-entropy with the labels, KL to the base model's scores."""

    correct: Correct
    loss: float
    divergence: float
    seconds: float
    """Processor seconds of the training, which other processes do not change."""


def main() -> None:
    args = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first: Correct | None = None
        for variant in args.variants:
            chosen = settings(variant)
            trial = Trial(chosen.pop("optimizer", "nadamuon"), chosen.pop("followed", None), chosen.pop("kept", None))
            found = measure(configure(args, 1, chosen), trial, args.work or Path(folder))
            first = found.correct if first is None else first
            against = Difference.of(found.correct, first)
            print(
                f"{variant or 'defaults':60} {found.correct.mean():.1%}  cross-entropy {found.loss:.3f}  "
                f"KL {found.divergence:.4f}  {found.seconds:.0f} s  against the first {against.points:+.1f} points, "
                f"{p_text(against.p)}",
                flush=True,
            )


@dataclass(frozen=True)
class Trial:
    """What no setting of a build says.

    Attributes:
        optimizer: of the recovery.
        followed: numbers of blocks, separated by commas, or `none`; None: those of a build.
        kept: on how many views streams are kept; None: on all.
    """

    optimizer: Any
    followed: Any
    kept: Any

    def blocks(self, architecture: AnyArchitecture) -> tuple[int, ...]:
        """Whose streams are followed."""
        if self.followed is None:
            return stream_blocks(architecture)
        return () if self.followed == "none" else tuple(map(int, self.followed.split(",")))


def measure(config: BuildConfig, trial: Trial, work: Path) -> Recovered:
    """Prune one sub-model for all classes and train it."""
    build = open_build(config, work)
    data, trained, plan = build.data, build.base, build.plan
    how, views = build.source.preprocessing, training_views(config, data)
    taught = teach(
        build.runner,
        config,
        trained,
        views,
        blocks=trial.blocks(plan.base),
        kept=None if trial.kept is None else int(trial.kept),
        preprocessing=how,
        devices=[build.device],
    )
    group = Group(plan.submodels[0].classes, plan.submodels[0].architecture.widths)
    (pruned,) = prune(build.runner, config, data, trained, [group], source=build.source, device=build.device)
    mean, std = how.mean, how.std
    start = time.process_time()
    with torch_threads(1):
        model = recover(
            checkpoint.load_model(weights_path(pruned)),
            group.classes,
            views,
            taught.open(),
            replace(recovery(config), optimizer=trial.optimizer),
            rotation=load_rotation(pruned),
            blocks=taught.blocks,
            follow=taught.follow(build.device) if trial.kept is not None and taught.blocks else None,
            mean=mean,
            std=std,
            seed=config.seed,
            device=build.device,
        ).model
    seconds = time.process_time() - start
    scores = base.logits_of(FeatureExtractor(model, mean, std), data.validation)
    wanted = base.logits_of(trained.extractor, data.validation)
    return Recovered(
        correct=scores.argmax(dim=1).numpy() == data.validation.labels,
        loss=F.cross_entropy(scores, torch.from_numpy(data.validation.labels)).item(),
        divergence=soft_loss(scores, wanted, 1.0).item(),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
