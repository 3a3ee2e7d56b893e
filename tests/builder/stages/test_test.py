from __future__ import annotations

import numpy as np
import pytest
import torch

from edvit.builder.stages import test as measure
from edvit.builder.stages.test import Sessions, TestResult, latencies_s
from edvit.runtime.device.engine import open_session

torch.set_num_threads(1)


def result(**scores):
    """Four images of three classes."""
    labels = np.array([0, 1, 2, 1])
    right = np.eye(3, dtype=np.float32)[labels]
    known = {
        "base": right,
        "fused": right,
        "without": {"pi-1": np.roll(right, 1, axis=1), "pi-2": right},
        "alone": np.stack([right, np.zeros_like(right)]),
        "baseline": None,
    }
    return TestResult(labels=labels, **{**known, **scores})


def test_accuracy_is_the_share_of_right_answers():
    test = result()
    assert test.accuracy(test.base) == 1.0
    assert test.accuracy(test.without["pi-1"]) == 0.0
    assert test.accuracy(test.alone[1]) == 0.25  # class 0 for all


def test_own_accuracy_is_over_the_own_classes_images():
    test = result()
    assert test.own_accuracy(1, (0, 2)) == 0.5
    assert test.own_accuracy(1, (1,)) == 0.0
    assert test.own_accuracy(0, (1,)) == 1.0


def test_metrics_name_every_part_once():
    names = [metric.name for metric in result().metrics()]
    assert names == ["base", "fused", "submodel-0", "submodel-1", "fused-without-pi-1", "fused-without-pi-2"]
    values = {metric.name: metric.value for metric in result(baseline=result().alone[1]).metrics()}
    assert values["n1"] == values["submodel-1"] == 0.25
    assert values["fused-without-pi-1"] == 0.0


def test_latencies_are_of_every_part(tiny_build):
    built = tiny_build.built
    seconds = latencies_s(built.base, built.split, built.data, devices=built.devices, baseline=built.baseline)
    assert set(seconds) == {"base", "fused", "n1", "submodel-0", "submodel-1"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["fused"] > max(seconds["submodel-0"], seconds["submodel-1"])


@pytest.mark.parametrize(
    ("devices", "fused"), [(("a", "b"), 3.0 + 0.5), (("a", "a"), 2.0 + 3.0 + 0.5)], ids=["one each", "shared"]
)
def test_devices_work_side_by_side_and_what_one_holds_one_after_the_other(tiny_build, monkeypatch, devices, fused):
    built = tiny_build.built
    split, n1 = built.split, built.baseline
    taken = {
        split.submodel_path(0): 2.0,
        split.submodel_path(1): 3.0,
        split.fusion_path: 0.5,
        n1.submodel_path(0): 7.0,
        n1.fusion_path: 0.25,
    }
    monkeypatch.setattr(measure, "_onnx_s", lambda path, **_: taken[path])
    seconds = latencies_s(built.base, split, built.data, devices=devices, baseline=n1)
    assert seconds["fused"] == fused
    assert seconds["n1"] == 7.25, "of its own files, its fusion as well"
    assert (seconds["submodel-0"], seconds["submodel-1"]) == (2.0, 3.0)
    assert "n1" not in latencies_s(built.base, split, built.data, devices=devices, baseline=None)


def test_sessions_are_those_of_a_device(tiny_build, monkeypatch):
    opened = []

    def open_and_note(path, threads):
        opened.append((path, threads))
        return open_session(path, threads)

    monkeypatch.setattr(measure, "open_session", open_and_note)
    built = tiny_build.built
    latencies_s(built.base, built.split, built.data, devices=built.devices, baseline=None)
    files = {built.split.submodel_path(0), built.split.submodel_path(1), built.split.fusion_path}
    assert {path for path, _ in opened} == files
    assert {threads for _, threads in opened} == {1}


def test_a_device_that_is_away_takes_its_features_with_it(tiny_build):
    built = tiny_build.built
    sessions = Sessions(built.split, threads=1)
    pixels = built.data.validation.pixels(slice(0, 8))
    features = sessions.features(pixels)
    dims = [submodel.feature_dim for submodel in tiny_build.bundle.manifest.submodels]
    assert features.shape == (8, sum(dims))
    whole = sessions.fuse(features)
    assert np.array_equal(whole, sessions.fuse(features, np.ones((8, 2), np.float32)))
    garbage = features.copy()
    garbage[:, : dims[0]] = 1e6
    away = np.tile(np.array([0, 1], np.float32), (8, 1))
    assert np.array_equal(sessions.fuse(garbage, away), sessions.fuse(features, away))
    assert not np.allclose(whole, sessions.fuse(features, away))


def test_the_exported_features_are_the_sub_models(tiny_build):
    from edvit.builder.stages.prepare import load_extractor

    built = tiny_build.built
    pixels = built.data.validation.pixels(slice(0, 16))
    how = built.context.source.preprocessing
    with torch.inference_mode():
        parts = [load_extractor(a, how)(torch.from_numpy(pixels)) for a in built.split.submodels]
    assert Sessions(built.split, threads=1).features(pixels) == pytest.approx(torch.cat(parts, 1).numpy(), abs=1e-4)
