from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ValueInfoProto, numpy_helper

from edvit.builder.export.calibration import replace_weights
from edvit.builder.export.onnx_file import export_submodel
from edvit.builder.vit.backbone import FeatureExtractor
from vit_variants import make

torch.set_num_threads(1)


def pixels(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module", params=["plain", "rms_norm_plain", "avg_pool"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "submodel.onnx"
    extractor = FeatureExtractor(make(request.param), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()
    export_submodel(extractor, torch.from_numpy(pixels(2)), path)
    return onnx.load(str(path))


def products(model):
    return {node.input[1]: node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")}


def inputs_of(model, names, images):
    """What reaches each product, by ONNX Runtime with the whole graph."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    found = {name: products(model)[name].input[0] for name in names}
    watched.graph.output.extend(ValueInfoProto(name=value) for value in sorted(set(found.values())))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = sorted(set(found.values()))
    values = dict(zip(wanted, session.run(wanted, {"image": images}), strict=True))
    return {
        name: values[value].reshape(-1, values[value].shape[-1]).astype(np.float64) for name, value in found.items()
    }


def test_each_product_sees_what_the_replaced_ones_before_it_give(model):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    names, images, seen = list(products(model)), pixels(7), {}

    def replace(name, weights, hessian):
        seen[name] = hessian
        return np.round(weights, 2)

    replace_weights(changed, names, [{"image": images[:4]}, {"image": images[4:]}], replace)
    assert list(seen) == names, "in the order of the graph"
    for name, x in inputs_of(changed, names, images).items():
        assert seen[name] == pytest.approx(x.T @ x, rel=1e-3, abs=1e-3 * np.abs(x.T @ x).max()), name
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    after = {constant.name: numpy_helper.to_array(constant) for constant in changed.graph.initializer}
    for name in names:
        assert np.array_equal(after[name], np.round(constants[name], 2))
    for name in set(constants) - set(names):
        assert np.array_equal(after[name], constants[name])


def test_weights_come_as_inputs_by_outputs(model):
    names, shapes = list(products(model)), {}

    def replace(name, weights, hessian):
        shapes[name] = (weights.shape, hessian.shape)
        return weights

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    replace_weights(changed, names, [{"image": pixels(2)}], replace)
    assert all(hessian == (weights[0], weights[0]) for weights, hessian in shapes.values())
    for before, after in zip(model.graph.initializer, changed.graph.initializer, strict=True):
        assert before.name == after.name
        assert np.array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
