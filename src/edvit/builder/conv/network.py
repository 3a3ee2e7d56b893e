"""Convolutional classifiers whose filters can be cut: torchvision's VGG, plain or with spiking neurons.

They answer to the same calls as timm's models do: `forward_features`, `forward_head` and `head`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from edvit.builder.conv.lif import Lif
from edvit.shape.conv import ConvArchitecture, vgg_plan


class ConvNet(nn.Module, ABC):
    """Convolutions, the mean over all places, one linear head over the classes.

    Args:
        architecture: whole or pruned.
    """

    head: nn.Module

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = architecture.classes

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[batch, channels, H, W]` to scores `[batch, classes]`."""
        return self.forward_head(self.forward_features(images))

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """The last set of filters, `[batch, filters, h, w]`."""

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """The feature, `[batch, filters]`, or the scores."""
        feature = maps.mean(dim=(2, 3))
        scores: Tensor = feature if pre_logits else self.head(feature)
        return scores


class Vgg(ConvNet):
    """torchvision's VGG with batch normalisation, without its classifier."""

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__(architecture)
        filters = architecture.widths.filters
        plan = vgg_plan(architecture.name, architecture.image_size)
        layers = make_layers(["M" if layer == "pool" else filters[layer] for layer in plan], batch_norm=True)
        layers[0] = nn.Conv2d(architecture.channels, filters[0], kernel_size=3, padding=1)
        self.features: nn.Sequential = layers
        self.head = _head(architecture)
        _initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)
        return maps


class SpikingVgg(Vgg):
    """The VGG with leaky integrate-and-fire neurons (after EC-SNN, IJCAI 2024).

    Direct coding: the first convolution reads the image itself, once, and its output is the current at every time
    step. The feature is the rate at which the last neurons fire.
    """

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__(architecture)
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.ReLU):
                self.features[index] = Lif()

    def forward_features(self, images: Tensor) -> Tensor:
        steps = self.architecture.time_steps
        conv, norm, *rest = self.features
        current = norm(conv(images))
        # Every layer over all time steps before the next one: [steps * batch, filters, h, w], steps outermost.
        maps = current.repeat(steps, 1, 1, 1)
        for layer in rest:
            maps = layer(maps.unflatten(0, (steps, -1))).flatten(0, 1) if isinstance(layer, Lif) else layer(maps)
        rates: Tensor = maps.unflatten(0, (steps, -1)).mean(dim=0)
        return rates


def _head(architecture: ConvArchitecture) -> nn.Module:
    return nn.Linear(architecture.feature_dim, architecture.classes) if architecture.classes else nn.Identity()


def _initialise(model: nn.Module) -> None:
    """As torchvision does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def create(architecture: ConvArchitecture) -> ConvNet:
    """A freshly initialised network, float32 on the CPU, drawn from torch's global generator."""
    if architecture.spiking:
        return SpikingVgg(architecture)
    return Vgg(architecture)
