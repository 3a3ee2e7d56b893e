"""`edvit build`: from training data to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from edvit.cli import DATA_HELP, DATA_ROOT_HELP, app, finite, given
from edvit.errors import ConfigError, MissingExtraError

NOT_RECORDED = {"out", "work", "force", "workers", "ray", "memory_limit", "download"}
"""Flags that do not change what is built; recording them would change the bundle's digest."""

SETTINGS = {"img_size": "image_size", "memory_limit": "memory_limit_mb"}
"""Fields of `BuildConfig` whose options have another name."""
NO_SETTINGS = {"out", "work", "force", "download", "fleet", "devices"}


@app.command()
def build(
    context: typer.Context,
    *,
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the bundle."),
    data: str = typer.Option(
        "digits",
        help=DATA_HELP,
    ),
    data_root: Path | None = typer.Option(None, help=DATA_ROOT_HELP),
    download: bool = typer.Option(False, "--download", help="Fetch the data set into --data-root."),
    model: str | None = typer.Option(
        None, help="timm model name, or a network of docs/models.md; for digits a small ViT."
    ),
    weights: Path | None = typer.Option(None, help="Base weights: .safetensors, or .pth/.pt without code in it."),
    img_size: int | None = typer.Option(None, "--img-size", min=1, help="Pixels; default: the model's own."),
    channels: int | None = typer.Option(None, min=1, max=3, help="1 or 3; default: what suits the data."),
    seconds: float | None = typer.Option(
        None, callback=finite, help="Of each sound, its middle; default: the median length."
    ),
    sample_rate: int | None = typer.Option(None, help="Of sounds, Hz; default: 16000."),
    mels: int | None = typer.Option(None, help="Mel bands of sounds; default: 64."),
    fleet: Path | None = typer.Option(None, help="fleet.yaml that describes the devices."),
    devices: int | None = typer.Option(None, min=1, help="Number of equal devices, in place of --fleet."),
    groups: int | None = typer.Option(None, min=1, help="Sub-models; default: one per device, at most one per class."),
    keep: str | None = typer.Option(None, help="Keep ratio, e.g. 2/12; default: a third of the heads."),
    attention: Literal["dims", "heads"] = typer.Option("dims", help="Narrow every head, or drop whole heads."),
    prune: Literal["subspace", "channels"] | None = typer.Option(
        None,
        help="Keep the directions that a class group uses and refit, or score and delete channels; default: subspace "
        "for ViTs, channels for convolutional networks.",
    ),
    criterion: Literal["fisher-kl", "kl", "magnitude", "random", "apoz"] | None = typer.Option(
        None,
        help="How --prune channels scores components; default: fisher-kl for ViTs, apoz for convolutional networks.",
    ),
    without: list[str] = typer.Option(
        [], help="A step of --prune subspace to leave out: rotation, fisher, factors, readers, writers, correction."
    ),
    widths: Literal["uniform", "fitted"] | None = typer.Option(
        None,
        help="Equal in all blocks, or spent where a group's output gains most; default: fitted where that can be, by "
        "subspace and with all heads.",
    ),
    fisher: float = typer.Option(
        0.3, callback=finite, help="Share of the identity in the Fisher weight of --prune subspace."
    ),
    foreign: float = typer.Option(
        1 / 3, callback=finite, min=0, help="Weight of the foreign classes in --prune subspace, own: 1."
    ),
    calibration: int = typer.Option(300, min=1, help="Images of its own classes that each group is pruned on."),
    augment: Literal["natural", "glyphs", "spectrograms", "none"] | None = typer.Option(
        None, help="Default: what suits the data."
    ),
    base_epochs: int | None = typer.Option(None, min=0, help="Epochs of training the base; default: as needed."),
    base_lr: float | None = typer.Option(None, callback=finite, help="Peak learning rate of the base."),
    recover_epochs: int = typer.Option(20, min=0, help="Epochs of training each sub-model; 0 leaves it as pruned."),
    views: int | None = typer.Option(
        None, min=1, help="Augmented views that the base model teaches on; default: one per epoch, at most 20."
    ),
    mix: float | None = typer.Option(
        None,
        callback=finite,
        min=0,
        max=1,
        help="Share of the views' images that are mixed with another (mix-up, CutMix); default: 0.5 from 16 epochs of "
        "recovery on, 0 below.",
    ),
    strength: float | None = typer.Option(
        None,
        callback=finite,
        min=0,
        help="Of the views' augmentation, in that of the base's training; default: 1.75 from 16 epochs on, 1 below.",
    ),
    recover_lr: float | None = typer.Option(
        None, callback=finite, help="Peak learning rate of recovery; default: 1e-3 by subspace, 5e-3 by channels."
    ),
    precision: Literal["fp32", "int8"] = typer.Option(
        "fp32", help="Of the sub-models' weights; int8 is a third of the size, and is measured like fp32."
    ),
    batch_size: int = typer.Option(64, min=2, help="Images a training step."),
    validation: float = typer.Option(0.1, callback=finite, help="Share of the training data held out for validation."),
    seed: int = typer.Option(0, min=0, help="Of the groups, the draws and the training."),
    baseline: bool = typer.Option(True, help="Also build N = 1 at the same width, to compare."),
    workers: int | None = typer.Option(None, min=1, help="Sub-models trained at a time; default: one per core."),
    device: Literal["cpu", "cuda"] = typer.Option(
        "cpu", help="What trains and runs models; cuda: the GPUs that PyTorch sees, sub-models taking turns on them."
    ),
    amp: bool | None = typer.Option(
        None,
        "--amp/--no-amp",
        help="Train with matrix products in bfloat16; default: on GPUs, and on CPUs that have instructions for it.",
    ),
    memory_limit: int | None = typer.Option(
        None, min=1, help="MB that scoring by --prune channels may take, all processes together."
    ),
    ray: str | None = typer.Option(
        None,
        help="Train sub-models on this Ray cluster: auto, or HOST:PORT of its head; all its nodes must see --work.",
    ),
    work: Path | None = typer.Option(None, help="Where stages are kept for resuming; default: OUT-work."),
    force: list[str] = typer.Option(
        [],
        help="Redo this stage: data, base, teacher, statistics, scores, prune, recover, export, quantise, fuse, test.",
    ),
) -> None:
    """Build a bundle: train, partition, prune, recover, export, fuse, measure. Run again to resume."""
    try:
        from edvit.builder.config import STAGES, make_config
        from edvit.builder.jobs.progress import Reporter
        from edvit.builder.pipeline import build as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"edvit build needs {error.name}: pip install 'edvit[build]'") from None
    from edvit.cli.plan import chosen_fleet

    unknown = sorted(set(force) - set(STAGES))
    if unknown:
        raise ConfigError(f"--force {unknown[0]}: no such stage; stages: {', '.join(STAGES)}")
    if download:
        from edvit.builder.download import download as fetch

        fetch(data, data_root)
    config = make_config(**given_settings(context), fleet=chosen_fleet(fleet, devices))
    bundle, _ = run(config, out, work=work, force=frozenset(force), flags=given_flags(context), report=Reporter())
    typer.echo(f"\nNext: edvit serve {bundle.path} --local")


def given_settings(context: typer.Context) -> dict[str, Any]:
    """The fields of `BuildConfig` that the user set; `BuildConfig` itself knows the default of every other one."""
    return {SETTINGS.get(name, name): value for name, value in given(context).items() if name not in NO_SETTINGS}


def given_flags(context: typer.Context) -> dict[str, Any]:
    """What the user typed, as JSON values; what does not change the result is left out."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given(context).items()
        if name not in NOT_RECORDED
    }
