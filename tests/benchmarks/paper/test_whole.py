"""`python -m benchmarks.paper` on the digits, with builds of a few seconds."""

import csv

import pytest
from benchmarks.paper.__main__ import app

from serving import run_module

OPTIONS = ["--data", "digits", "--base-epochs", "2", "--recover-epochs", "0", "--views", "1", "--workers", "1"]


@pytest.mark.slow
def test_a_table_is_built_and_taken_up_again(tmp_path):
    table = ["benchmarks.paper", "-o", tmp_path / "table", "--devices", "1,2", "--seeds", "1", *OPTIONS]
    done = run_module(*table, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "table" / "table.csv").read_text().splitlines()))
    assert [row["devices"] for row in rows] == ["1", "2"]
    assert all(0 < float(row["fused"]) <= 1 and float(row["faster"]) > 0 for row in rows)
    assert rows[0]["command"] in done.stdout
    assert "| 2 |" in (tmp_path / "table" / "table.md").read_text()
    assert (tmp_path / "table" / "figure.svg").read_text().startswith("<?xml")

    before = (tmp_path / "table" / "n2-seed0" / "manifest.json").stat().st_mtime_ns
    again = run_module(*table, timeout=60)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "table" / "n2-seed0" / "manifest.json").stat().st_mtime_ns == before


def test_bad_input_is_one_line(benchmark, tmp_path):
    for options, message in (
        (["--devices", "two"], "--devices two: give numbers of devices separated by commas"),
        (["--seed", "3"], "--seed: the table sets this option itself"),
    ):
        code, _, said = benchmark(app, "-o", tmp_path / "table", *options)
        assert code == 2
        assert len(said.splitlines()) == 1
        assert message in said


@pytest.mark.slow
def test_a_build_that_fails_ends_the_table(tmp_path):
    failed = run_module(
        "benchmarks.paper", "-o", tmp_path / "table", "--devices", "1", "--seeds", "1", "--data", "nothing"
    )
    assert failed.returncode != 0
    assert "unknown data spec 'nothing'" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("edvit: this cell failed, see above: edvit build --data nothing")
