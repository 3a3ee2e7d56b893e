import csv
import io
import json
from dataclasses import asdict, replace

import pytest
from benchmarks.compare.charts import LOOKS, bars, scatters
from benchmarks.compare.comparison import (
    Comparison,
    OverLink,
    check_systems,
    compare,
    exchange_from_json,
    exchange_to_json,
    measured_from_json,
    measured_to_json,
    to_csv,
    to_markdown,
)
from benchmarks.compare.energy import Operations
from benchmarks.compare.exchange import AllGather, Chain, FanOut, Work
from benchmarks.compare.links import Means, parse_link
from benchmarks.compare.systems import SYSTEMS, UNSPLIT, Measured, measure
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import comparison as compare_module
from compare_settings import SETTINGS
from edvit.builder.jobs.progress import Reporter
from edvit.errors import BuildError, ConfigError

EXCHANGE = FanOut(192, (Work(0.002), Work(0.003)), (64, 72), Work(0.0005))
LINK = parse_link("100mbit,5ms,1%")


def measured(system="subspace", seed=0, accuracy=0.9, exchange=EXCHANGE):
    return Measured(system, seed, accuracy, 80_000, 330_000, exchange, Operations(1e6, 10.0))


def over(system, link="100mbit", **changes):
    line = OverLink(system, link, "measured", 0.004, 0.003, 0.006, 120.0, 0.0035, 150.0)
    return replace(line, **changes)


seconds = st.floats(0, 10)
sizes = st.integers(1, 10**6)
fan_outs = st.lists(st.tuples(seconds, sizes), min_size=1, max_size=4).map(
    lambda devices: FanOut(7, tuple(Work(s) for s, _ in devices), tuple(b for _, b in devices), Work(0.1), Work(0.3))
)
chains = st.lists(st.tuples(seconds, sizes), min_size=1, max_size=4).map(
    lambda devices: Chain(7, tuple(Work(s) for s, _ in devices), tuple(b for _, b in devices))
)
gathers = st.tuples(st.integers(1, 3), st.lists(st.tuples(seconds, sizes), min_size=1, max_size=4)).map(
    lambda drawn: AllGather(
        7,
        tuple(tuple(Work(s) for s, _ in drawn[1]) for _ in range(drawn[0])),
        tuple(b for _, b in drawn[1]),
        tuple(b for _, b in drawn[1]),
        Work(0.2),
    )
)


@given(exchange=fan_outs | chains | gathers)
def test_what_was_measured_comes_back_from_json(exchange):
    one = measured(exchange=exchange)
    text = json.dumps(measured_to_json(one))
    assert measured_from_json(json.loads(text)) == one
    assert exchange_from_json(json.loads(json.dumps(exchange_to_json(exchange)))) == exchange


def test_int8_counted_by_an_earlier_version_is_measured_again_and_nothing_else():
    values = measured_to_json(measured())
    before = {"multiply_adds": 1e6, "additions": 10.0}
    assert measured_from_json({**values, "operations": {**before, "int8": False}}) == measured()
    with pytest.raises(ValueError, match="earlier version"):
        measured_from_json({**values, "operations": {**before, "int8": True}})


def test_no_gpu_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no CUDA GPU here"):
        compare(
            SETTINGS.model_copy(update=dict(device="cuda")), tmp_path, systems=["small"], seeds=1, links=[], images=2,
            report=Reporter(quiet=True), tell=print,
        )  # fmt: skip


@pytest.mark.parametrize("change", [{"kind": "Ring"}, {"work": None}, {"input_bytes": 0}])
def test_damaged_json_is_noticed(change):
    with pytest.raises((ValueError, TypeError, ConfigError)):
        exchange_from_json({**exchange_to_json(EXCHANGE), **change})


def test_the_busiest_device_is_the_worst():
    assert measured().worst_s == 0.003
    gather = AllGather(7, ((Work(1.0), Work(2.0)), (Work(4.0), Work(1.0))), (5, 5), (5, 0))
    assert measured(exchange=gather).worst_s == 5.0


def test_systems_come_in_the_order_of_the_table_and_unknown_ones_are_named():
    assert check_systems(["tokens", "subspace"]) == ("subspace", "tokens")
    with pytest.raises(ConfigError, match="unknown system 'split-rnn'; known: subspace, "):
        check_systems(["split-rnn"])
    assert set(UNSPLIT) < set(SYSTEMS)


class Measuring:
    """Stands in for building: counts, and fails where it is told to."""

    def __init__(self, monkeypatch, fails=()):
        self.asked, self.fails = [], dict(fails)
        monkeypatch.setattr(compare_module, "measure", self)
        monkeypatch.setattr(compare_module, "means", lambda _link: Means("modelled", "no privileges"))

    def __call__(self, _workshop, system, seed):
        self.asked.append((system, seed))
        if system in self.fails:
            raise self.fails[system]
        return measured(system, seed)


def run(folder, settings=SETTINGS, **options):
    told = []
    how = {"systems": ("subspace", "whole"), "seeds": 2, "links": [LINK], "images": 2, **options}
    return compare(settings, folder, report=Reporter(quiet=True), tell=told.append, **how), told


def test_trained_systems_have_every_seed_and_a_second_run_measures_nothing(tmp_path, monkeypatch):
    measuring = Measuring(monkeypatch)
    first, told = run(tmp_path)
    assert measuring.asked == [("subspace", 0), ("subspace", 1), ("whole", 0)]
    assert [(one.system, one.seed) for one in first.measured] == measuring.asked
    assert [line.how for line in first.over_links] == ["modelled"] * 2
    assert first.modelled == {str(LINK): "no privileges"}
    assert f"[link {LINK}] modelled: no privileges" in told
    measuring.asked.clear()
    again, _ = run(tmp_path)
    assert again == first
    assert not measuring.asked


def test_other_settings_and_damaged_files_are_measured_again(tmp_path, monkeypatch):
    measuring = Measuring(monkeypatch)
    run(tmp_path)
    measuring.asked.clear()
    run(tmp_path, SETTINGS.model_copy(update=dict(recover_epochs=1)))
    assert len(measuring.asked) == 3
    measuring.asked.clear()
    for path in (tmp_path / "measured").glob("whole-seed0-*.json"):
        path.write_text("{")
    run(tmp_path)
    assert measuring.asked == [("whole", 0)]


def test_ensembles_share_no_member_between_seeds():
    built = []

    class Members:
        settings = SETTINGS.model_copy(update=dict(devices=3))

        def small(self, seed):
            built.append(seed)
            return None, None  # which is all of an ensemble that its members decide

    for seed in range(3):
        with pytest.raises(AttributeError):
            measure(Members(), "ensemble", seed)
    assert built == list(range(9))


def test_ensembles_that_did_are_measured_again(tmp_path, monkeypatch):
    measuring = Measuring(monkeypatch)
    settings = SETTINGS.model_copy(update=dict(devices=3))
    run(tmp_path, settings, systems=("ensemble",))
    known = sorted(path.name for path in (tmp_path / "measured").glob("ensemble-seed*"))
    assert [name.rpartition("-")[0] for name in known] == ["ensemble-seed0", "ensemble-seeds3-5"]
    (tmp_path / "measured" / known[1]).rename(tmp_path / "measured" / known[1].replace("seeds3-5", "seed1"))
    measuring.asked.clear()
    run(tmp_path, settings, systems=("ensemble",))
    assert measuring.asked == [("ensemble", 1)]


def test_what_was_measured_before_a_failure_is_kept(tmp_path, monkeypatch):
    Measuring(monkeypatch, {"whole": BuildError("no")})
    with pytest.raises(BuildError):
        run(tmp_path)
    measuring = Measuring(monkeypatch)
    run(tmp_path)
    assert measuring.asked == [("whole", 0)]


def test_a_system_that_the_budget_rules_out_is_left_out_and_named(tmp_path, monkeypatch):
    Measuring(monkeypatch, {"subspace": ConfigError("too little")})
    comparison, told = run(tmp_path)
    assert comparison.systems == ["whole"]
    assert "left out: too little" in told
    assert "Left out: subspace (too little)." in to_markdown(comparison)


def test_no_system_within_the_budget_is_one_line(tmp_path, monkeypatch):
    Measuring(monkeypatch, {name: ConfigError("too little") for name in SYSTEMS})
    with pytest.raises(ConfigError, match="nothing to compare: too little"):
        run(tmp_path)


def test_tables_give_mean_range_and_how_links_were_had():
    comparison = Comparison(
        (measured(), measured(seed=1, accuracy=0.8), measured("whole", accuracy=0.95)),
        (over("subspace"), over("whole", predicted_s=0.004), over("subspace", "20mbit", how="modelled", latency_s=0.01),
         over("whole", "20mbit", how="modelled")),
        {}, {"20mbit": "no ip command"},
    )  # fmt: skip
    lines = to_markdown(comparison).splitlines()
    assert lines[2].startswith("| subspace | 85.0% (80.0 – 90.0) | 0.08 M | 0.33 MB | 3.00 ms | 520 B |")
    assert "| system | 100mbit, measured: ms | images/s | 20mbit, modelled: ms | images/s |" in lines
    assert "| subspace | 4.0 (formula 3.5) | 120 | 10.0 | 120 |" in lines
    assert "| whole | 4.0 | 120 | 4.0 | 120 |" in lines
    assert "Modelled: 20mbit (no ip command)." in lines
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == 6
    assert {row["system"] for row in rows} == {"subspace", "whole"}
    assert asdict(over("subspace"))["latency_s"] == float(rows[0]["latency_s"])


def test_figures_name_every_system():
    comparison = Comparison((measured(), measured("whole")), (over("subspace"), over("whole")), {}, {})
    drawn = scatters(comparison, "100mbit")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["subspace", "whole"]
    assert [tick.get_text() for tick in bars(comparison).axes[0].get_yticklabels()] == ["subspace", "whole"]


def test_every_system_has_a_look_of_its_own():
    assert list(LOOKS) == list(SYSTEMS)
    assert len(set(LOOKS.values())) == len(LOOKS)
