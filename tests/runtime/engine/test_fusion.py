from __future__ import annotations

import numpy as np
import onnx
import pytest

from edvit.runtime.engine.fusion import FusionEngine
from tiny_bundle import FEATURE_DIM, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("engine") / "bundle", submodels=3, classes=7)


def test_fusion_uses_what_is_there_and_stands_in_for_what_is_not(bundle):
    model = onnx.load(bundle.path / "fusion.onnx")
    value = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fusion = FusionEngine(bundle.path / "fusion.onnx", bundle.manifest)
    rng = np.random.default_rng(1)
    features = {i: rng.normal(size=(2, FEATURE_DIM)).astype(np.float32) for i in (0, 2)}
    stand_in = np.repeat(value["stand_in"][:, FEATURE_DIM : 2 * FEATURE_DIM], 2, axis=0)
    expected = np.concatenate([features[0], stand_in, features[2]], axis=1) @ value["weight"]
    np.testing.assert_allclose(fusion.run(features, batch=2), expected, rtol=1e-5, atol=1e-5)
