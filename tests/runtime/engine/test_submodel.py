from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from edvit.errors import DeadlineError, ImageError, ModelError
from edvit.runtime.engine.submodel import CHUNK, SubModelEngine
from edvit.runtime.predictor import LocalPredictor
from tiny_bundle import FEATURE_DIM, write_submodel, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("engine") / "bundle", submodels=3, classes=7)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def weight_of(bundle, submodel):
    model = onnx.load(bundle.model_path(bundle.manifest.submodel(submodel).model))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}["weight"]


def engine(path, **changes):
    return SubModelEngine(path, **{"channels": 3, "image_size": 16, "feature_dim": FEATURE_DIM, **changes})


def test_a_submodel_gives_what_numpy_gives(bundle, images):
    feature = engine(bundle.path / "submodel-1.onnx").run(images)
    expected = (images.astype(np.float32) / 255).mean(axis=(2, 3)) @ weight_of(bundle, 1)
    assert feature.dtype == np.float32
    np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_is_run_in_chunks_of_bounded_size(bundle, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2 * CHUNK + 1, 3, 16, 16), dtype=np.uint8)
    submodel, sizes = engine(bundle.path / "submodel-1.onnx"), []
    expected = np.concatenate([submodel.run(images[start : start + CHUNK]) for start in (0, CHUNK, 2 * CHUNK)])
    run = SubModelEngine.run
    monkeypatch.setattr(SubModelEngine, "run", lambda self, part: (sizes.append(len(part)), run(self, part))[1])
    assert submodel.run_in_chunks(images).tobytes() == expected.tobytes()
    assert sizes == [CHUNK, CHUNK, 1]
    with pytest.raises(DeadlineError):
        submodel.run_in_chunks(images, until=time.monotonic() - 1)
    assert len(sizes) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((1, 1, 16, 16), np.uint8),
        np.zeros((1, 3, 16, 15), np.uint8),
        np.zeros((0, 3, 16, 16), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_wrong_images_are_refused(bundle, wrong):
    with pytest.raises(ImageError):
        LocalPredictor(bundle).run(wrong)
    with pytest.raises(ImageError):
        engine(bundle.path / "submodel-0.onnx").run(wrong)


@pytest.mark.parametrize("changes", [{"channels": 1}, {"image_size": 8}, {"feature_dim": 9}], ids=str)
def test_a_model_of_other_shapes_is_refused(bundle, changes):
    with pytest.raises(ModelError, match="is tensor"):
        engine(bundle.path / "submodel-0.onnx", **changes)


def test_a_model_with_other_values_is_refused(bundle):
    with pytest.raises(ModelError, match="inputs must be named image"):
        engine(bundle.path / "fusion.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime cannot load it") as refused:
        engine(path)
    assert "\n" not in str(refused.value)


def test_a_fixed_batch_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    write_submodel(path, 3, 16, seed=0)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    with pytest.raises(ModelError, match="fixed batch"):
        engine(path)
