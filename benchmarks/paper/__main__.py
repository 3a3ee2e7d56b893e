"""`python -m benchmarks.paper`: the paper's table and figure, from builds for several numbers of devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks.paper.builds import cells, run_all, to_csv, to_markdown
from benchmarks.paper.figure import figure
from edvit.cli import HOW, PositiveInt, run_app
from edvit.errors import ConfigError

app = App(name="python -m benchmarks.paper", help_format="plaintext", default_parameter=HOW, version_flags=())


@app.default
def paper(
    *options: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Any other option of edvit build, the same in all builds.")
    ],
    out: Annotated[Path, Parameter(alias="-o", help="Folder of the table, its figure and the bundles.")],
    devices: Annotated[str, Parameter(help="Numbers of devices, separated by commas.")] = "1,2,3,5,10",
    seeds: Annotated[PositiveInt, Parameter(help="Builds for each number of devices: seeds 0, 1, ...")] = 3,
) -> None:
    """Build for several numbers of devices and seeds: accuracy, latency and size, as in the paper. Run again to resume.

    The table is written after each build.
    """
    planned = cells(out, _numbers(devices), seeds, options)
    out.mkdir(parents=True, exist_ok=True)
    markdown = ""
    for rows in run_all(planned, print):
        markdown = to_markdown(rows)
        (out / "table.csv").write_text(to_csv(rows), encoding="utf-8")
        (out / "table.md").write_text(markdown, encoding="utf-8")
        figure(rows).savefig(out / "figure.svg", metadata={"Date": None})
    print(f"\n{markdown}\nTable and figure: {out / 'table.md'}, {out / 'table.csv'}, {out / 'figure.svg'}")


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
