from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from edvit.errors import BundleError, ConfigError, DeadlineError, ImageError, ModelError
from edvit.runtime.engine.submodel import CHUNK, FusionEngine, LocalPredictor, SubModelEngine
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


def test_fusion_uses_what_is_there_and_stands_in_for_what_is_not(bundle):
    model = onnx.load(bundle.path / "fusion.onnx")
    value = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fusion = FusionEngine(bundle.path / "fusion.onnx", bundle.manifest)
    rng = np.random.default_rng(1)
    features = {i: rng.normal(size=(2, FEATURE_DIM)).astype(np.float32) for i in (0, 2)}
    stand_in = np.repeat(value["stand_in"][:, FEATURE_DIM : 2 * FEATURE_DIM], 2, axis=0)
    expected = np.concatenate([features[0], stand_in, features[2]], axis=1) @ value["weight"]
    np.testing.assert_allclose(fusion.run(features, batch=2), expected, rtol=1e-5, atol=1e-5)


def test_a_whole_bundle_in_one_process(bundle, images):
    predictor = LocalPredictor(bundle)
    prediction = predictor.predict(images)
    assert prediction.logits.shape == (5, 7)
    assert prediction.missing == ()
    assert not prediction.degraded
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (prediction.labels == prediction.probabilities.argmax(axis=1)).all()
    assert prediction.timings.total_s >= prediction.timings.slowest_run_s > 0


def test_absent_submodels_degrade(bundle, images):
    predictor = LocalPredictor(bundle)
    whole = predictor.predict(images)
    degraded = predictor.predict(images, absent=[2, 0])
    assert degraded.missing == (0, 2)
    assert degraded.degraded
    assert not np.array_equal(degraded.logits, whole.logits)
    assert predictor.predict(images, absent=range(3)).missing == (0, 1, 2)


def test_threads_do_not_change_a_bit(bundle, images):
    one, two = LocalPredictor(bundle, threads=1), LocalPredictor(bundle, threads=2)
    assert np.array_equal(one.predict(images).logits, two.predict(images).logits)


def test_probabilities_of_huge_logits_are_finite(bundle, images):
    prediction = LocalPredictor(bundle).predict(images)
    prediction.logits[:] *= 1e4
    assert np.isfinite(prediction.probabilities).all()


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
        LocalPredictor(bundle).predict(wrong)
    with pytest.raises(ImageError):
        engine(bundle.path / "submodel-0.onnx").run(wrong)


@pytest.mark.parametrize("changes", [{"channels": 1}, {"image_size": 8}, {"feature_dim": 9}], ids=str)
def test_a_model_of_other_shapes_is_refused(bundle, changes):
    with pytest.raises(ModelError, match="is tensor"):
        engine(bundle.path / "submodel-0.onnx", **changes)


def test_a_model_with_other_values_is_refused(bundle):
    with pytest.raises(ModelError, match="inputs are not"):
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


def test_a_bundle_whose_fusion_does_not_fit_is_refused(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", submodels=2, classes=7)
    (bundle_path := tmp_path / "mixed").symlink_to(other.path)
    mixed = type(bundle)(path=bundle_path, manifest=bundle.manifest, digest=bundle.digest)
    with pytest.raises(BundleError):
        LocalPredictor(mixed)


def test_no_threads_is_refused(bundle):
    with pytest.raises(ConfigError, match="threads"):
        LocalPredictor(bundle, threads=0)
