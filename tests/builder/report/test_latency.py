import pytest
import torch

from edvit.builder.report import latency
from edvit.builder.report.latency import latencies_s
from edvit.builder.stages import test as test_stage
from edvit.runtime.engine.session import open_session

torch.set_num_threads(1)


def image(built):
    """One validation image."""
    return built.data.validation.pixels(slice(0, 1))


def test_latencies_are_of_every_part(tiny_build):
    built = tiny_build.built
    seconds = latencies_s(built.base, built.fused, image(built), devices=built.devices, baseline=built.baseline)
    assert set(seconds) == {"base", "fused", "n1", "submodel-0", "submodel-1"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["fused"] > max(seconds["submodel-0"], seconds["submodel-1"])


@pytest.mark.parametrize(
    ("devices", "fused"), [(("a", "b"), 3.0 + 0.5), (("a", "a"), 2.0 + 3.0 + 0.5)], ids=["one each", "shared"]
)
def test_devices_work_side_by_side_and_what_one_holds_one_after_the_other(tiny_build, monkeypatch, devices, fused):
    built = tiny_build.built
    split, n1 = built.fused, built.baseline
    taken = {
        split.submodel_path(0): 2.0,
        split.submodel_path(1): 3.0,
        split.fusion_path: 0.5,
        n1.submodel_path(0): 7.0,
        n1.fusion_path: 0.25,
    }
    monkeypatch.setattr(latency, "_onnx_s", lambda path, **_: taken[path])
    seconds = latencies_s(built.base, split, image(built), devices=devices, baseline=n1)
    assert seconds["fused"] == fused
    assert seconds["n1"] == 7.25, "of its own files, its fusion as well"
    assert (seconds["submodel-0"], seconds["submodel-1"]) == (2.0, 3.0)
    assert "n1" not in latencies_s(built.base, split, image(built), devices=devices, baseline=None)


def test_sessions_are_those_of_a_device(tiny_build, monkeypatch):
    opened = []

    def open_and_note(path, threads):
        opened.append((path, threads))
        return open_session(path, threads)

    monkeypatch.setattr(latency, "open_session", open_and_note)
    monkeypatch.setattr(test_stage, "open_session", open_and_note)
    built = tiny_build.built
    latencies_s(built.base, built.fused, image(built), devices=built.devices, baseline=None)
    files = {built.fused.submodel_path(0), built.fused.submodel_path(1), built.fused.fusion_path}
    assert {path for path, _ in opened} == files
    assert {threads for _, threads in opened} == {1}
