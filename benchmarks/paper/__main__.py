"""`python -m benchmarks.paper`: the paper's table and figure, from builds for several numbers of devices."""

from __future__ import annotations

from pathlib import Path

import typer

from benchmarks.paper.builds import cells, run_all, to_csv, to_markdown
from benchmarks.paper.figure import figure
from edvit.cli import run_app
from edvit.errors import ConfigError

app = typer.Typer(name="python -m benchmarks.paper", add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def paper(
    context: typer.Context,
    *,
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the table, its figure and the bundles."),
    devices: str = typer.Option("1,2,3,5,10", help="Numbers of devices, separated by commas."),
    seeds: int = typer.Option(3, min=1, help="Builds of each: seeds 0, 1, ..."),
) -> None:
    """Build for several numbers of devices and seeds: accuracy, latency and size, as in the paper. Run again to resume.

    The table is written after each build. Every other option is one of edvit build, the same in all builds.
    """
    planned = cells(out, _numbers(devices), seeds, context.args)
    out.mkdir(parents=True, exist_ok=True)
    markdown = ""
    for rows in run_all(planned, typer.echo):
        markdown = to_markdown(rows)
        (out / "table.csv").write_text(to_csv(rows), encoding="utf-8")
        (out / "table.md").write_text(markdown, encoding="utf-8")
        figure(rows).savefig(out / "figure.svg", metadata={"Date": None})
    typer.echo(f"\n{markdown}\nTable and figure: {out / 'table.md'}, {out / 'table.csv'}, {out / 'figure.svg'}")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--devices {text}: give numbers of devices separated by commas, such as 1,2,5")
    return numbers


if __name__ == "__main__":
    run_app(app)
