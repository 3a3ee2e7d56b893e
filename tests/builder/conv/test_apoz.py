from __future__ import annotations

import pytest
import torch

from edvit.builder.conv import network
from edvit.builder.conv.apoz import Activity, activity
from edvit.errors import BuildError, DataError
from edvit.shape.conv import convnet

torch.set_num_threads(1)

FEW = {"atol": 2e-3, "rtol": 0}
"""A place or two of a filter's thousands: an output next to 0 may round to either side."""


def model_of(name):
    torch.manual_seed(0)
    model = network.create(convnet(name, image_size=16, channels=1, classes=10))
    images = torch.randn(12, 1, 16, 16)
    for _ in range(5):
        model(images)
    return model.eval(), images


@torch.inference_mode()
def test_activity_is_the_share_of_positive_outputs():
    model, images = model_of("vgg5")
    found = activity(model, images, batch_size=5)
    maps, index = images, 0
    for layer in model.features:
        maps = layer(maps)
        if isinstance(layer, torch.nn.ReLU):
            expected = (maps > 0).double().mean(dim=(0, 2, 3))
            torch.testing.assert_close(found.sets[index], expected, **FEW)
            index += 1
    assert index == len(found.sets)


def test_spikes_count_over_time():
    model, images = model_of("spiking_vgg5")
    found = activity(model, images)
    with torch.inference_mode():
        rates = model.features[:-1]  # without the last pool
        steps = model.architecture.time_steps
        maps = rates[1](rates[0](images)).repeat(steps, 1, 1, 1)
        maps = rates[2](maps.unflatten(0, (steps, -1)))
    torch.testing.assert_close(found.sets[0], maps.double().mean(dim=(0, 1, 3, 4)), **FEW)


def test_the_model_is_as_it_was():
    model, images = model_of("vgg5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activity(model.train(), images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_images_are_refused():
    model, images = model_of("vgg5")
    with pytest.raises(DataError, match="no images"):
        activity(model, images[:0])


def test_scores_come_back_from_their_file(tmp_path):
    model, images = model_of("vgg5")
    found = activity(model, images)
    found.save(tmp_path / "scores.safetensors")
    again = Activity.load(tmp_path / "scores.safetensors")
    assert all(map(torch.equal, found.sets, again.sets))
    (tmp_path / "scores.safetensors").write_bytes(b"no")
    with pytest.raises(BuildError, match="remove it and run again"):
        Activity.load(tmp_path / "scores.safetensors")
