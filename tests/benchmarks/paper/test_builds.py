import csv
import io
import json
from dataclasses import asdict, astuple, replace
from pathlib import Path

import pytest
from benchmarks.paper.builds import (
    Latencies,
    Row,
    by_devices,
    cells,
    latencies_s,
    measure,
    run_all,
    shown,
    to_csv,
    to_markdown,
)
from benchmarks.paper.figure import figure

from benchmarks.paper import builds as paper
from edvit.errors import BuildError, ConfigError

ROW = Row(
    devices=2, seed=0, base=0.9, fused=0.85, one_lost=0.8, params=500_000, bytes=2_000_000, smaller=8.0,
    base_ms=20.0, base_onnx_ms=15.0, ms=2.0, faster=10.0, command="edvit build",
)  # fmt: skip
ROWS = [
    ROW,
    replace(ROW, seed=1, base=0.91, fused=0.87),
    replace(ROW, devices=1, one_lost=None),
    replace(ROW, devices=1, seed=1, one_lost=None, fused=0.8),
]


def test_every_number_of_devices_is_built_with_every_seed(tmp_path):
    planned = cells(tmp_path, [5, 1, 5], 2, ["--data", "digits"])
    assert [(cell.devices, cell.seed) for cell in planned] == [(1, 0), (1, 1), (5, 0), (5, 1)]
    assert shown(planned[3]) == (
        f"edvit build --data digits --devices 5 --seed 1 --no-baseline --work {tmp_path}/work -o {tmp_path}/n5-seed1"
    )


@pytest.mark.parametrize("option", ["--seed", "--devices=3", "-o", "--work", "--no-baseline"])
def test_what_the_table_sets_is_not_the_users(option):
    with pytest.raises(ConfigError, match=rf"{option.partition('=')[0]}: the table sets this option itself"):
        cells(Path("out"), [1], 1, ["--data", "digits", option])


def test_a_finished_cell_is_not_built_again(tmp_path, monkeypatch):
    (cell,) = cells(tmp_path, [2], 1, [])
    cell.out.mkdir()
    (cell.out / "manifest.json").touch()
    row = replace(ROW, command=shown(cell))
    cell.row_path.write_text(json.dumps(asdict(row)))
    monkeypatch.setattr(paper.subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert paper.run(cell) == row


@pytest.mark.parametrize("left", ["", "{}", "[1]", json.dumps(asdict(ROW))], ids=["empty", "lacks", "list", "other"])
def test_a_row_that_is_not_this_cells_is_not_taken(tmp_path, monkeypatch, left):
    (cell,) = cells(tmp_path, [2], 1, [])
    cell.row_path.write_text(left)
    monkeypatch.setattr(paper.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 2}))
    with pytest.raises(BuildError, match="this cell failed, see above: edvit build"):
        paper.run(cell)


def test_rows_are_there_before_all_are_built(tmp_path, monkeypatch):
    first, second = cells(tmp_path, [1, 2], 1, [])
    first.out.mkdir()
    (first.out / "manifest.json").touch()
    first.row_path.write_text(json.dumps(asdict(replace(ROW, command=shown(first)))))
    monkeypatch.setattr(paper.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 2}))
    told: list[str] = []
    built = run_all([first, second], told.append)
    assert [row.command for row in next(built)] == [shown(first)]
    with pytest.raises(BuildError):
        next(built)
    assert told[1] == f"[2/2] {shown(second)}"


@pytest.mark.slow
def test_a_bundle_is_measured(tiny_build, tmp_path):
    (cell,) = cells(tmp_path, [2], 1, [])
    manifest = tiny_build.bundle.manifest
    row = measure(cell, tiny_build.bundle)
    assert row.fused == manifest.metric("fused")
    assert row.base == manifest.metric("base")
    assert row.one_lost == min(m.value for m in manifest.metrics if m.name.startswith("fused-without-"))
    assert row.smaller == pytest.approx(manifest.base.params / max(s.params for s in manifest.submodels))
    assert row.faster == pytest.approx(min(row.base_ms, row.base_onnx_ms) / row.ms)
    assert all(seconds > 0 for seconds in astuple(latencies_s(tiny_build.bundle, rounds=2)))


def test_a_speed_up_is_against_what_runs_the_base_faster():
    assert Latencies(3.0, 2.0, 1.0).faster == 2.0
    assert Latencies(2.0, 3.0, 1.0).faster == 2.0
    assert Latencies(2.0, None, 1.0).faster == 2.0


def test_tables_give_mean_and_range():
    assert [count for count, _ in by_devices(ROWS)] == [1, 2]
    lines = to_markdown(ROWS).splitlines()
    assert lines[2].startswith("| 1 | 90.0% | 82.5% (80.0 – 85.0) | 7.5 (5.0 – 10.0) |  | 0.50 M |")
    assert lines[3].startswith("| 2 | 90.5% (90.0 – 91.0) | 86.0% (85.0 – 87.0) | 4.5 (4.0 – 5.0) | 80.0% |")
    assert "over seeds 0, 1" in lines[5]
    read = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [float(row["fused"]) for row in read] == [row.fused for row in ROWS]


def test_the_figure_has_a_point_for_every_number_of_devices():
    panels = figure(ROWS).axes
    assert len(panels) == 3
    for axes in panels:
        for line in axes.lines:
            assert set(line.get_xdata()) == {1, 2}
