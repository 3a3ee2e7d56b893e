"""What benchmarks share that try settings of a build on validation images: arguments, settings, and a base model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from edvit.builder.config import BuildConfig, make_config
from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.parallel import Processes
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner
from edvit.builder.pipeline import make_plan
from edvit.builder.stages.base import Base, load, train
from edvit.builder.stages.data import Data, decode
from edvit.builder.stages.source import Source, open_source
from edvit.builder.train.device import TorchDevice, devices
from edvit.fleet import local_fleet
from edvit.plan.plan import Plan


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Settings to try, and what they are tried on."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", help="settings as name=value, separated by spaces; empty: the defaults")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", type=Path, required=True, help="of a base model that knows the classes")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="work folder of a build, to reuse what it has done")
    return parser


def settings(variant: str) -> dict[str, object]:
    """`name=value` pairs; `without` may name several steps, separated by commas."""
    pairs = dict(part.split("=", 1) for part in variant.split())
    return {name: tuple(value.split(",")) if name == "without" else value for name, value in pairs.items()}


def configure(args: argparse.Namespace, devices: int, chosen: dict[str, object]) -> BuildConfig:
    """The settings of one variant: those of `args`, and what the variant changes."""
    return make_config(
        data=args.data,
        model=args.model,
        weights=args.weights,
        image_size=args.img_size,
        fleet=local_fleet(devices),
        seed=args.seed,
        **chosen,
    )


@dataclass(frozen=True)
class Opened:
    """A build up to its base model."""

    runner: Runner
    source: Source
    data: Data
    base: Base
    plan: Plan
    device: TorchDevice


def open_build(config: BuildConfig, work: Path) -> Opened:
    """Data, base model and plan; what `work` has of them is not made again."""
    source, device = open_source(config), devices(config.device, config.amp)[0]
    runner = Runner(WorkFolder(work), Processes(config.workers), Reporter(quiet=True))
    data = decode(runner, source, config.validation)
    base = train(runner, config, source, data, start=load(config, source), device=device)
    return Opened(runner, source, data, base, make_plan(config, source), device)
