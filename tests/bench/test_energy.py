import pytest
import torch

from edvit.bench.energy import ADD_J, MULTIPLY_J, Operations, dense_operations, model_operations, spiking_operations
from edvit.builder.conv import network
from edvit.convnet import convnet
from edvit.plan.conv_cost import conv_flops

torch.set_num_threads(1)


def test_joules_are_those_of_the_operations():
    assert Operations(10.0, 4.0).joules == pytest.approx(10 * (ADD_J + MULTIPLY_J) + 4 * ADD_J)
    assert Operations(10.0, int8=True).joules == pytest.approx(10 * 0.3e-12)
    assert dense_operations(20).multiply_adds == 10
    assert Operations(1, 2) + Operations(3, 4, int8=True) == Operations(4, 6, int8=True)


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
