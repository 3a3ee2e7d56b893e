from collections import Counter

import onnx
import pytest
import torch

from edvit.builder.export.onnx_file import export_module, export_submodel
from edvit.builder.export.onnx_form import OPSET, onnx_form
from edvit.builder.vit.backbone import FeatureExtractor
from vit_variants import VARIANTS, images, make

torch.set_num_threads(1)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def extractor_of(variant, **kwargs):
    return FeatureExtractor(make(variant, **kwargs), MEAN, STD).eval()


def pixels(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_the_same(variant):
    extractor = extractor_of(variant)
    form = onnx_form(extractor)
    with torch.inference_mode():
        for count in (1, 3):
            expected, found = extractor(pixels(count)), form(pixels(count))
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_model_itself_stays_as_it_was():
    extractor = extractor_of("plain")
    before = {name: (id(value), value.clone()) for name, value in extractor.state_dict(keep_vars=True).items()}
    types = [type(part) for part in extractor.modules()]
    onnx_form(extractor)
    assert [type(part) for part in extractor.modules()] == types
    for name, value in extractor.state_dict(keep_vars=True).items():
        assert (id(value), True) == (before[name][0], torch.equal(value, before[name][1])), name


def test_weights_that_stay_are_shared():
    extractor = extractor_of("plain")
    form = onnx_form(extractor)
    assert form.model.blocks[0].mlp.fc1.weight is extractor.model.blocks[0].mlp.fc1.weight
    assert form.model.patch_embed.proj.weight is not extractor.model.patch_embed.proj.weight


def graph(path):
    model = onnx.load(str(path))
    assert [opset.version for opset in model.opset_import if not opset.domain] == [OPSET]
    assert {node.domain for node in model.graph.node} == {""}, "operators of ONNX itself, which any runtime knows"
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("variant", "norm"), [("plain", "LayerNormalization"), ("rms_norm_plain", "RMSNormalization")])
def test_a_block_is_few_operators(tmp_path, variant, norm):
    export_submodel(extractor_of(variant), pixels(2), tmp_path / "submodel.onnx")
    found, blocks = graph(tmp_path / "submodel.onnx"), 3
    assert found["Attention"] == blocks
    # One for the patches, and in the last block one for queries of one token and one for keys and values of all.
    assert found["Gemm"] == 1 + 4 * blocks + 1
    assert found[norm] == 2 * blocks + 1
    assert found["Add"] == 2 * blocks + 1
    assert not found["MatMul"] + found["Softmax"] + found["Div"] + found["Sqrt"]


def test_a_classifier_is_exported_likewise(tmp_path):
    model = make("avg_pool")
    export_module(model, (images(2),), ["image"], "scores", tmp_path / "whole.onnx")
    assert graph(tmp_path / "whole.onnx")["Attention"] == 3
