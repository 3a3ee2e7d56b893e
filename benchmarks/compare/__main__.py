"""`python -m benchmarks.compare`: this project next to other ways to use N devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from benchmarks.compare import charts
from benchmarks.compare import comparison as comparison_module
from benchmarks.compare.links import parse_link
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workshop import Settings
from edvit.builder.jobs.progress import Reporter
from edvit.builder.options import COMMON
from edvit.cli import HOW, PositiveInt, run_app
from edvit.errors import ConfigError

app = App(name="python -m benchmarks.compare", help_format="plaintext", default_parameter=HOW, version_flags=())

LINKS = ("100mbit", "20mbit", "100mbit,5ms", "100mbit,5ms,1%")
SEEDS, IMAGES = 3, 30

QUICK: dict[str, Any] = {
    "devices": 2,
    "convnet": "vgg5",
    "spiking": "spiking_vgg5",
    "conv_size": 16,
    "base_epochs": 4,
    "conv_epochs": 2,
    "recover_epochs": 1,
    "views": 1,
}
"""Settings of `--quick`."""
QUICK_SEEDS, QUICK_IMAGES = 1, 6


@app.default
def compare(
    *,
    out: Annotated[Path, COMMON, Parameter(alias="-o", help="Folder of the tables, the figures and all builds.")],
    settings: Annotated[Settings, Parameter(name="*")] = Settings(),
    seeds: Annotated[PositiveInt | None, COMMON, Parameter(help="Builds of each trained system; default: 3.")] = None,
    systems: Annotated[
        str | None, COMMON, Parameter(help="Names separated by commas; default: all (docs/results/comparison.md).")
    ] = None,
    links: Annotated[
        tuple[str, ...],
        COMMON,
        Parameter(name="--link", help=f"RATE[,DELAY[,LOSS]]; may be given again; default: {' '.join(LINKS)}."),
    ] = (),
    images: Annotated[
        int | None, COMMON, Parameter(validator=Number(gte=2), help="Images of each replay over a link; default: 30.")
    ] = None,
    quick: Annotated[
        bool, COMMON, Parameter(help="All systems on digits within minutes: a trial of the command, no result.")
    ] = False,
) -> None:
    """Compare this project with other ways to use N devices: accuracy, size, latency over links, energy.

    Run again to resume. Needs the bench extra.
    """
    own = {name for name, value in (("seeds", seeds), ("images", images)) if value is not None}
    clash = sorted(f"--{name.replace('_', '-')}" for name in own | (settings.model_fields_set & QUICK.keys()))
    if quick and clash:
        raise ConfigError(f"--quick sets {', '.join(clash)} itself: leave one or the other out")
    wanted = comparison_module.check_systems(
        list(SYSTEMS) if systems is None else [name.strip() for name in systems.split(",")]
    )
    specs = [parse_link(text) for text in links or (LINKS[:1] if quick else LINKS)]
    seeds, images = seeds or SEEDS, images or IMAGES
    if quick:
        settings, seeds, images = settings.model_copy(update=QUICK), QUICK_SEEDS, QUICK_IMAGES
    out.mkdir(parents=True, exist_ok=True)
    comparison = comparison_module.compare(
        settings, out, systems=wanted, seeds=seeds, links=specs, images=images, report=Reporter(), tell=print
    )
    markdown = comparison_module.to_markdown(comparison)
    (out / "compare.md").write_text(markdown, encoding="utf-8")
    (out / "compare.csv").write_text(comparison_module.to_csv(comparison), encoding="utf-8")
    charts.scatters(comparison, str(specs[0])).savefig(out / "accuracy.svg", metadata={"Date": None})
    charts.bars(comparison).savefig(out / "bars.svg", metadata={"Date": None})
    written = ("compare.md", "compare.csv", "accuracy.svg", "bars.svg")
    print(f"\n{markdown}\nTables and figures: {', '.join(str(out / name) for name in written)}")


if __name__ == "__main__":
    run_app(app)
