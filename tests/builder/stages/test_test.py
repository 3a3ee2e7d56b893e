from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edvit.builder.images import ImageSet
from edvit.builder.stages import test as test_stage
from edvit.builder.stages.base import load_extractor
from edvit.builder.stages.export import load_head
from edvit.builder.stages.test import Sessions, TestResult, export_base
from edvit.errors import BuildError
from edvit.runtime.engine.session import open_session
from tiny_build import runner_of

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
        "images": ImageSet(Path("nowhere"), np.arange(4)),
    }
    return TestResult(labels=labels, **{**known, **scores})


def test_accuracy_is_the_share_of_right_answers():
    test = result()
    assert test.accuracy(test.base) == 1.0
    assert test.accuracy(test.without["pi-1"]) == 0.0
    assert test.accuracy(test.alone[1]) == 0.25  # class 0 for all


def test_own_answers_are_to_the_own_classes_images():
    test = result()
    assert test.own_correct(1, (0, 2)).tolist() == [True, False]
    assert test.own_correct(1, (1,)).tolist() == [False, False]
    assert test.own_correct(0, (1,)).tolist() == [True, True]


def test_answers_are_told_apart_image_by_image():
    found = result(baseline=result().alone[1]).correct()
    assert found["n1"].tolist() == found["submodel-1"].tolist() == [True, False, False, False]
    assert found["fused"].tolist() == [True] * 4
    assert "n1" not in result().correct()


def test_metrics_name_every_part_once():
    names = [metric.name for metric in result().metrics()]
    assert names == ["base", "fused", "submodel-0", "submodel-1", "fused-without-pi-1", "fused-without-pi-2"]
    values = {metric.name: metric.value for metric in result(baseline=result().alone[1]).metrics()}
    assert values["n1"] == values["submodel-1"] == 0.25
    assert values["fused-without-pi-1"] == 0.0


def test_a_device_that_is_away_takes_its_features_with_it(tiny_build):
    built = tiny_build.built
    sessions = Sessions(built.fused.files, built.fused.fusion, threads=1)
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
    built = tiny_build.built
    pixels = built.data.validation.pixels(slice(0, 16))
    how = built.source.preprocessing
    with torch.inference_mode():
        parts = [load_extractor(a, how)(torch.from_numpy(pixels)) for a in built.fused.recovered]
    found = Sessions(built.fused.files, built.fused.fusion, threads=1).features(pixels)
    assert found == pytest.approx(torch.cat(parts, 1).numpy(), abs=1e-4)


def test_the_exported_head_is_the_sub_models(tiny_build):
    built = tiny_build.built
    for exported, recovered in zip(built.fused.exported, built.fused.recovered, strict=True):
        expected = load_extractor(recovered, built.source.preprocessing).model.head.state_dict()
        found = load_head(exported).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_exported_base_answers_as_the_base_and_is_made_once(tiny_build, work, monkeypatch):
    built = tiny_build.built
    monkeypatch.setattr(test_stage, "export_module", None)  # the build has made it
    path = export_base(runner_of(work), built.base, built.data.validation)
    pixels = built.data.validation.pixels(slice(0, 16))
    with torch.inference_mode():
        expected = built.base.model.head(built.base.extractor(torch.from_numpy(pixels))).numpy()
    assert open_session(path, 1).run(None, {"image": pixels})[0] == pytest.approx(expected, abs=1e-4)


def test_a_base_that_cannot_be_exported_costs_no_build(tiny_build, tmp_path, monkeypatch):
    def fail(*_):
        raise BuildError("ONNX Runtime differs from PyTorch")

    monkeypatch.setattr(test_stage, "export_module", fail)
    assert export_base(runner_of(tmp_path), tiny_build.built.base, tiny_build.built.data.validation) is None
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
