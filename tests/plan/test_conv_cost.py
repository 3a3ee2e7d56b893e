from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edvit.builder.conv import network
from edvit.plan.cost import model_cost
from edvit.shape.conv import NAMES, convnet
from edvit.shape.image import ImageSize

torch.set_num_threads(1)


@pytest.mark.parametrize("pruned", [0, 8])
@pytest.mark.parametrize("size", [ImageSize(16, 16), ImageSize(20, 50)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_operations_equal_torchs(name, pruned, size):
    shape = convnet(name, image_size=size, channels=1, classes=7).narrowed(pruned)
    model = network.create(shape).eval()
    cost = model_cost(shape)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, *size))
    assert cost.flops == counter.get_total_flops()


def test_a_submodel_sends_its_feature_and_holds_no_head():
    whole = convnet("vgg9", classes=10)
    cut = whole.narrowed(8).model_copy(update={"classes": 0})
    assert model_cost(cut).feature_bytes == 4 * 128
    assert model_cost(whole).params - model_cost(whole.model_copy(update={"classes": 0})).params == 257 * 10


def test_bytes_of_weights_and_image():
    shape = convnet("vgg5", image_size=16, channels=3, classes=10)
    cost = model_cost(shape)
    assert cost.weight_bytes == 4 * cost.params
    int8 = model_cost(shape, "int8")  # convolutions are not quantised, but their weights are stored in two bytes
    assert (int8.weight_bytes, int8.peak_memory_bytes) == (2 * cost.params, cost.peak_memory_bytes)
    assert cost.input_bytes == 3 * 16 * 16
    assert cost.peak_memory_bytes > cost.weight_bytes
