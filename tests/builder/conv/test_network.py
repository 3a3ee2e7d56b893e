from __future__ import annotations

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from conv_modules import assert_as_described
from edvit.builder.conv import network
from edvit.shape.conv import NAMES, convnet
from edvit.shape.image import ImageSize

torch.set_num_threads(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("pruned", "size"),
    [(0, ImageSize(16, 16)), (8, ImageSize(16, 16)), (15, ImageSize(16, 16)), (8, ImageSize(20, 50))],
)
def test_every_path_of_the_shape_is_a_module_of_its_widths(name, pruned, size):
    shape = convnet(name, image_size=size, channels=1, classes=10).narrowed(pruned)
    model = network.create(shape).eval()
    assert_as_described(model)
    images = torch.randn(2, 1, *size)
    with torch.inference_mode():
        maps = model.forward_features(images)
        assert maps.shape[1] == shape.feature_dim
        assert model.forward_head(maps, pre_logits=True).shape == (2, shape.feature_dim)
        torch.testing.assert_close(model(images), model.forward_head(maps))


def test_vgg16_equals_torchvisions_convolutions():
    model = network.create(convnet("vgg16", image_size=32, classes=10)).eval()
    theirs = make_layers(cfgs["D"], batch_norm=True).eval()
    theirs.load_state_dict(model.features.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_features(images), theirs(images))


def test_a_spiking_network_fires_at_rates_of_its_time_steps():
    shape = convnet("spiking_vgg5", image_size=16, channels=1, classes=10)
    model = network.create(shape)
    images = torch.randn(8, 1, 16, 16)
    for _ in range(5):  # normalisations learn their statistics
        model(images)
    with torch.inference_mode():
        rates = model.eval().forward_features(images) * shape.time_steps
    assert torch.equal(rates, rates.round())
    assert rates.min() >= 0 and rates.max() <= shape.time_steps
