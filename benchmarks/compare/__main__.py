"""`python -m benchmarks.compare`: this project next to other ways to use N devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import typer

from benchmarks.compare import charts
from benchmarks.compare import comparison as comparison_module
from benchmarks.compare.links import parse_link
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workshop import Settings
from edvit.builder.jobs.progress import Reporter
from edvit.cli import DATA_HELP, DATA_ROOT_HELP, finite, given, run_app
from edvit.errors import ConfigError

app = typer.Typer(name="python -m benchmarks.compare", add_completion=False, pretty_exceptions_enable=False)

QUICK: dict[str, Any] = {
    "devices": 2,
    "convnet": "vgg5",
    "spiking": "spiking_vgg5",
    "conv_size": 16,
    "base_epochs": 8,
    "conv_epochs": 4,
    "recover_epochs": 1,
    "views": 1,
}
"""Settings of `--quick`."""
QUICK_SEEDS, QUICK_IMAGES = 1, 6


@app.command()
def compare(
    context: typer.Context,
    *,
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the tables, the figures and all that is built."),
    data: str = typer.Option("digits", help=DATA_HELP),
    data_root: Path | None = typer.Option(None, help=DATA_ROOT_HELP),
    devices: int = typer.Option(5, min=1, help="Devices of every system."),
    seeds: int = typer.Option(3, min=1, help="Builds of each system that is trained: seeds 0, 1, ..."),
    budget: float | None = typer.Option(
        None, callback=finite, help="MB of fp32 weights that a sub-model may have; default: an eighth of the ViT's."
    ),
    systems: str | None = typer.Option(
        None, help="Names separated by commas; default: all (docs/results/comparison.md)."
    ),
    links: list[str] = typer.Option(
        ["100mbit", "20mbit", "100mbit,5ms", "100mbit,5ms,1%"],
        "--link",
        help="RATE[,DELAY[,LOSS]]; give it once a link.",
    ),
    model: str | None = typer.Option(None, help="timm name of the ViT; for digits a small one is the default."),
    weights: Path | None = typer.Option(None, help="Its weights."),
    img_size: int | None = typer.Option(None, "--img-size", min=1, help="Pixels of the ViT; default: its own."),
    convnet: str = typer.Option("vgg9", help="Network of split-cnn: vgg5, vgg9 or vgg16."),
    spiking: str = typer.Option("spiking_vgg9", help="Network of split-snn: spiking_vgg5, ..."),
    conv_size: int = typer.Option(32, min=16, help="Pixels of convolutional networks."),
    compact: str = typer.Option("vgg5", help="A model that is small by design: a timm ViT or a network as above."),
    compact_weights: Path | None = typer.Option(None, help="Its weights; default: from scratch."),
    base_epochs: int | None = typer.Option(None, min=0, help="Epochs of training the ViT; default: as needed."),
    conv_epochs: int = typer.Option(20, min=0, help="Epochs of training each convolutional network, from scratch."),
    recover_epochs: int = typer.Option(20, min=0, help="Epochs of training each sub-model, of every system."),
    views: int | None = typer.Option(None, min=1, help="Augmented views that base models teach on."),
    augment: Literal["natural", "glyphs", "spectrograms", "none"] | None = typer.Option(
        None, help="Default: what suits the data."
    ),
    images: int = typer.Option(30, min=2, help="Images of each replay over a link."),
    image_encoding: Literal["raw", "webp", "jpeg"] = typer.Option(
        "raw", help="Images on their way to devices, as edvit serve sends them; accuracies are those of raw images."
    ),
    device: Literal["cpu", "cuda"] = typer.Option("cpu", help="What trains; everything is measured on the CPU."),
    workers: int | None = typer.Option(None, min=1, help="Sub-models trained at a time; default: one per core."),
    quick: bool = typer.Option(False, help="All systems on digits within minutes: a trial of the command, no result."),
) -> None:
    """Compare this project with other ways to use N devices: accuracy, size, latency over links, energy.

    Run again to resume. Needs the bench extra.
    """
    typed = given(context).keys()
    clash = sorted(f"--{name.replace('_', '-')}" for name in typed & {*QUICK, "seeds", "images"})
    if quick and clash:
        raise ConfigError(f"--quick sets {', '.join(clash)} itself: leave one or the other out")
    wanted = comparison_module.check_systems(
        list(SYSTEMS) if systems is None else [name.strip() for name in systems.split(",")]
    )
    specs = [parse_link(text) for text in (links[:1] if quick and "links" not in typed else links)]
    settings = Settings(
        data=data,
        data_root=data_root,
        devices=devices,
        model=model,
        weights=weights,
        image_size=img_size,
        convnet=convnet,
        spiking=spiking,
        conv_size=conv_size,
        compact=compact,
        compact_weights=compact_weights,
        budget_mb=budget,
        base_epochs=base_epochs,
        conv_epochs=conv_epochs,
        recover_epochs=recover_epochs,
        views=views,
        augment=augment,
        device=device,
        workers=workers,
        image_encoding=image_encoding,
    )
    if quick:
        settings, seeds, images = replace(settings, **QUICK), QUICK_SEEDS, QUICK_IMAGES
    out.mkdir(parents=True, exist_ok=True)
    comparison = comparison_module.compare(
        settings, out, systems=wanted, seeds=seeds, links=specs, images=images, report=Reporter(), tell=typer.echo
    )
    markdown = comparison_module.to_markdown(comparison)
    (out / "compare.md").write_text(markdown, encoding="utf-8")
    (out / "compare.csv").write_text(comparison_module.to_csv(comparison), encoding="utf-8")
    charts.scatters(comparison, str(specs[0])).savefig(out / "accuracy.svg", metadata={"Date": None})
    charts.bars(comparison).savefig(out / "bars.svg", metadata={"Date": None})
    written = ("compare.md", "compare.csv", "accuracy.svg", "bars.svg")
    typer.echo(f"\n{markdown}\nTables and figures: {', '.join(str(out / name) for name in written)}")


if __name__ == "__main__":
    run_app(app)
