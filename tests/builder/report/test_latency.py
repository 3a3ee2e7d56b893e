import numpy as np
import pytest
import torch

from edvit.builder.report import latency
from edvit.builder.report.latency import BASE_ONNX, BASE_TORCH, Latency, faster_base, measure_latencies
from edvit.builder.stages import test as test_stage
from edvit.runtime.engine.session import open_session

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def measure(tiny_build):
    """Measures the tiny build, on devices of these names, with its baseline or without."""
    built = tiny_build.built

    def run(devices=("a", "b"), baseline=built.baseline, exported=None):
        image = built.data.validation.pixels(slice(0, 1))
        return measure_latencies(built.base, exported, built.fused, image, devices=devices, baseline=baseline)

    return run


@pytest.fixture(scope="module")
def exported(tiny_build):
    """The tiny build's base model in ONNX, which its work folder holds."""
    (path,) = tiny_build.work.glob(f"test-*/{test_stage.BASE_FILE}")
    return path


def test_latencies_are_of_every_part_and_of_the_base_in_both(measure, exported):
    found = measure(exported=exported)
    assert list(found) == [BASE_TORCH, BASE_ONNX, "fused", "n1", "submodel-0", "submodel-1"]
    assert all(0 < one.low_s <= one.median_s <= one.high_s for one in found.values())
    assert found["fused"].median_s > max(found["submodel-0"].median_s, found["submodel-1"].median_s)


def test_what_is_timed_as_the_base_answers_as_the_base(measure, exported, monkeypatch):
    timed = {}

    def note(calls):
        timed.update(calls)
        return {name: np.ones(5) for name in calls}

    monkeypatch.setattr(latency, "interleaved_s", note)
    measure(exported=exported)
    with torch.inference_mode():
        expected = timed[BASE_TORCH]().numpy()
    (found,) = timed[BASE_ONNX]()
    assert expected.shape == (1, 10)
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_base_that_is_no_onnx_file_is_timed_in_pytorch_alone(measure):
    found = measure()
    assert BASE_ONNX not in found
    assert faster_base(found) == found[BASE_TORCH]


@pytest.mark.parametrize(
    ("devices", "fused"), [(("a", "b"), 3.0 + 0.5), (("a", "a"), 2.0 + 3.0 + 0.5)], ids=["one each", "shared"]
)
def test_devices_work_side_by_side_and_what_one_holds_one_after_the_other(measure, monkeypatch, devices, fused):
    taken = {BASE_TORCH: 9.0, "fused/0": 2.0, "fused/1": 3.0, "fused/fusion": 0.5, "n1/0": 7.0, "n1/fusion": 0.25}
    monkeypatch.setattr(latency, "interleaved_s", lambda calls: {name: np.full(5, taken[name]) for name in calls})
    found = {name: one.median_s for name, one in measure(devices).items()}
    assert found == {BASE_TORCH: 9.0, "fused": fused, "n1": 7.25, "submodel-0": 2.0, "submodel-1": 3.0}
    assert "n1" not in measure(devices, None)


def test_a_device_that_is_interrupted_now_and_then_is_not_the_slowest(measure, monkeypatch):
    taken = {name: np.full(5, 1.0) for name in (BASE_TORCH, "fused/fusion", "n1/0", "n1/fusion")}
    taken |= {"fused/0": np.array([1.0, 9.0, 9.0, 1.0, 1.0]), "fused/1": np.array([2.0, 2.0, 2.0, 9.0, 2.0])}
    monkeypatch.setattr(latency, "interleaved_s", lambda calls: {name: taken[name] for name in calls})
    assert measure()["fused"] == Latency(3.0, 3.0, 3.0)


def test_a_latency_is_the_median_and_the_middle_half():
    assert Latency.of(np.array([9.0, 1.0, 2.0, 3.0, 4.0])) == Latency(2.0, 3.0, 4.0)


def test_the_base_counts_in_what_runs_it_faster():
    torch_, onnx = Latency(1, 2, 3), Latency(1, 1.5, 2)
    assert faster_base({BASE_TORCH: torch_, BASE_ONNX: onnx}) == onnx
    assert faster_base({BASE_TORCH: onnx, BASE_ONNX: torch_}) == onnx


def test_sessions_are_those_of_a_device(tiny_build, measure, monkeypatch):
    opened = []

    def open_and_note(path, threads):
        opened.append((path, threads))
        return open_session(path, threads)

    monkeypatch.setattr(latency, "open_session", open_and_note)
    monkeypatch.setattr(test_stage, "open_session", open_and_note)
    measure(baseline=None)
    fused = tiny_build.built.fused
    assert {path for path, _ in opened} == {fused.submodel_path(0), fused.submodel_path(1), fused.fusion_path}
    assert {threads for _, threads in opened} == {1}
