"""A real build that takes seconds: a very small ViT on the digits, in two groups.

`python tiny_build.py OUT` builds it with two workers and a checkpoint after every step, for tests that kill a build.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.built import Built
from edvit.builder.config import make_config
from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.parallel import Processes
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.family import family_of
from edvit.builder.options import NEEDS
from edvit.builder.pipeline import build
from edvit.builder.stages.base import Base, Start, load, train
from edvit.builder.stages.data import Data, decode
from edvit.builder.stages.source import Source, open_source
from edvit.builder.train.device import TorchDevice, devices
from edvit.bundle import Bundle
from edvit.fleet import local_fleet

MODEL = "vit_test_build"

MAX_MODEL = "vit_test_build_max"
"""The same with max pooling: it has no rotated form."""

_CFG = {"num_classes": 10, "input_size": (1, 8, 8), "first_conv": "patch_embed.proj", "classifier": "head"}
default_cfgs = generate_default_cfgs({MODEL: _CFG, MAX_MODEL: _CFG})


@register_model
def vit_test_build(pretrained=False, **kwargs):
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    return build_model_with_cfg(VisionTransformer, MODEL, pretrained, **{**shape, **kwargs})


@register_model
def vit_test_build_max(pretrained=False, **kwargs):
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    return build_model_with_cfg(
        VisionTransformer, MAX_MODEL, pretrained, **{**shape, "global_pool": "max", "class_token": False, **kwargs}
    )


@dataclass(frozen=True)
class TinyBuild:
    """A finished build; `work` is shared between tests: copy it to change it."""

    bundle: Bundle
    built: Built
    work: Path


def tiny_config(**settings):
    """The settings of the tiny build, some of them changed; what then has no effect is left out."""
    tiny = {
        "model": MODEL,
        "fleet": local_fleet(2),
        "keep": "2/3",
        "base_epochs": 4,
        "base_lr": 5e-3,
        "recover_epochs": 2,
        "recover_lr": 4e-3,
        "batch_size": 32,
        "calibration": 16,
        "workers": 1,
    }
    changed = {**tiny, **settings}
    useless = {name for name, need in NEEDS.items() if name in tiny and name not in settings and not need.met(changed)}
    return make_config(**{name: value for name, value in changed.items() if name not in useless})


def runner_of(work):
    """Runs jobs in this process; `work` is a folder."""
    return Runner(WorkFolder(work), Processes(1), Reporter(quiet=True))


@dataclass(frozen=True)
class Opened:
    """A build up to its base model."""

    runner: Runner
    source: Source
    data: Data
    base: Base
    device: TorchDevice


def untrained(config, source):
    """A base model as it is drawn; with `--base-epochs 0` a build would refuse it."""
    torch.manual_seed(config.seed)
    return Start(family_of(source.model).create(source.architecture), knows=False, digest=None)


def opened(config, work, source=None, start=load):
    """The first two stages; what the folder `work` has of them is not made again."""
    runner, source, device = runner_of(work), source or open_source(config), devices(config.device, config.amp)[0]
    begun = start(config, source)
    data = decode(runner, source, config.validation)
    return Opened(runner, source, data, train(runner, config, source, data, start=begun, device=device), device)


if __name__ == "__main__":
    torch.set_num_threads(1)
    build(tiny_config(workers=2, checkpoint_every=0), Path(sys.argv[1]))
