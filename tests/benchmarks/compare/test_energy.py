import math

import onnx
import onnxruntime
import pytest
import torch
from benchmarks.compare.energy import (
    ADD_J,
    MULTIPLY_J,
    Operations,
    dense_operations,
    model_operations,
    spiking_operations,
)
from benchmarks.compare.workshop import _Scores

from edvit.builder.conv import network
from edvit.builder.export.onnx_file import export_module, quantise_submodel
from edvit.builder.models.family import describe
from edvit.builder.subspace import rms
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.plan.conv_cost import conv_flops
from edvit.shape.conv import convnet
from vit_variants import make

torch.set_num_threads(1)


def test_joules_are_those_of_the_operations():
    assert Operations(10.0, 4.0).joules == pytest.approx(10 * (ADD_J + MULTIPLY_J) + 4 * ADD_J)
    assert Operations(2.0, multiply_adds_int8=10.0).joules == pytest.approx(2 * (ADD_J + MULTIPLY_J) + 10 * 0.3e-12)
    assert Operations(1, 2, 3) + Operations(4, 5, 6) == Operations(5, 7, 9)


def multiply_adds(path, image):
    """Of a really exported file by the types they are computed in: float32, 8-bit."""
    model = onnx.load(path)
    weights = {one.name: tuple(one.dims) for one in model.graph.initializer}
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(None, {"image": image}), strict=True))
    shapes = {name: value.shape for name, value in found.items()} | weights
    in_float = in_int8 = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            in_float += found[node.output[0]].size * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            in_float += found[node.output[0]].size * shapes[node.input[0]][-1]
        elif node.op_type == "Attention":  # queries with keys, and their weights with values
            in_float += (found[node.input[0]].size + found[node.output[0]].size) * found[node.input[1]].shape[-2]
        elif node.op_type == "MatMulInteger":
            in_int8 += found[node.output[0]].size * shapes[node.input[0]][-1]
        else:
            assert node.op_type not in ("Einsum", "ConvInteger", "QLinearConv", "QLinearMatMul"), node.op_type
    return in_float, in_int8


def exported(model, path, int8, *, head):
    """A whole model or a sub-model, to a file as the comparison's systems have it."""
    channels, size = (model.architecture.channels, 16) if isinstance(model, network.ConvNet) else (3, 8)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=generator)
    extractor = FeatureExtractor(model, (0.5,) * channels, (0.25,) * channels).eval()
    export_module(_Scores(extractor) if head else extractor, (images,), ["image"], "scores", path)
    if int8:
        quantise_submodel(path, images)
    return multiply_adds(path, images[:1].numpy())


def averaged(model):
    """So that all tokens of its last block count, as the cost has it."""
    model.global_pool = "avg"
    return model


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("variant", ["plain", "qk_norm", "reg_tokens", "layer_scale"])
@pytest.mark.parametrize("int8", [False, True])
def test_a_vit_computes_in_each_type_as_its_file_does(tmp_path, variant, head, int8):
    model = averaged(make(variant))
    shape = describe(model).model_copy(update={} if head else {"classes": 0})
    counted = dense_operations(shape, int8=int8)
    found = exported(model, tmp_path / "model.onnx", int8, head=head)
    assert (counted.multiply_adds, counted.multiply_adds_int8) == found
    assert (found[1] > 0) == int8


@pytest.mark.parametrize("variant", ["plain", "pre_norm"])
def test_so_does_one_pruned_by_subspace(tmp_path, variant):
    model = averaged(rms.to_rms(make(variant)))
    shape = describe(model).model_copy(update={"classes": 0})
    counted = dense_operations(shape, int8=True)
    found = exported(model, tmp_path / "model.onnx", int8=True, head=False)
    assert (counted.multiply_adds, counted.multiply_adds_int8) == found


def test_the_convolutions_of_an_int8_file_are_in_float(tmp_path):
    shape = convnet("vgg5", image_size=16, channels=1, classes=10)
    model = network.create(shape).eval()
    counted = model_operations(model, shape, torch.zeros(1, 1, 16, 16), int8=True)
    assert (counted.multiply_adds, counted.multiply_adds_int8) == exported(
        model, tmp_path / "model.onnx", int8=True, head=True
    )
    assert counted.multiply_adds_int8 == 10 * shape.feature_dim


def test_a_spiking_network_in_int8_costs_what_it_does_in_float():
    shape = convnet("spiking_vgg5", image_size=16, channels=1, classes=0)
    model, images = network.create(shape).eval(), torch.randn(2, 1, 16, 16)
    assert model_operations(model, shape, images, int8=True) == model_operations(model, shape, images)


def test_a_spike_at_every_place_adds_every_weight():
    shape = convnet("spiking_vgg5", image_size=16, channels=1, classes=0)
    model = network.create(shape).eval()
    with torch.no_grad():
        for conv in shape.convs:  # so much current that every neuron fires at every step
            dict(model.named_modules())[conv.norm].bias.fill_(100.0)
    counted = spiking_operations(model, torch.randn(2, 1, 16, 16))
    first = 9 * 32 * 16 * 16
    assert counted.multiply_adds == first
    assert counted.additions == conv_flops(shape) / 2 - first


def test_additions_are_the_spikes_that_each_weight_meets():
    shape = convnet("spiking_vgg5", image_size=16, channels=1, classes=10)
    model = network.create(shape)
    images = torch.randn(4, 1, 16, 16)
    for _ in range(5):
        model(images)
    model.eval()
    spikes = {}
    modules = dict(model.named_modules())
    for conv in shape.convs[1:]:
        modules[conv.conv].register_forward_pre_hook(
            lambda _module, inputs, name=conv.conv: spikes.update({name: inputs[0].double().sum()})
        )
    with torch.inference_mode():
        model.forward_features(images)
    # A spike meets as many weights as its filter has places in the kernel, in each filter of the next set.
    expected = sum(spikes[conv.conv] / len(images) * conv.kernel**2 * shape.filters(conv) for conv in shape.convs[1:])
    counted = model_operations(model, shape, images)
    assert 0 < counted.additions == pytest.approx(float(expected))


def test_a_plain_network_takes_a_multiply_add_for_every_weight_and_place():
    shape = convnet("vgg5", image_size=16, channels=1, classes=10)
    counted = model_operations(network.create(shape), shape, torch.zeros(1, 1, 16, 16))
    assert counted == Operations(conv_flops(shape) / 2)
