"""The shape of a convolutional network, whole or pruned, plain or spiking: numbers only, no tensors and no torch.

The counterpart of `edvit.shape.vit`, for the models that a split ViT is compared with. Filters come in *sets*: what
a convolution writes is one set, and convolutions whose outputs are added write the same one.
"""

from __future__ import annotations

import difflib
from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edvit.errors import ModelError
from edvit.shape.image import ImageSize
from edvit.shape.vit import AttentionMode, round_width

KEEP_STEPS = 16
"""What the keep ratio counts in: a set of filters is narrowed by sixteenths."""
TIME_STEPS = 4
"""Time steps of a spiking network, as in EC-SNN (IJCAI 2024)."""
SMALLEST_IMAGE = 16
"""Pixels of a side, at least."""

_VGG: dict[str, tuple[int | Literal["pool"], ...]] = {
    "vgg5": (32, "pool", 64, "pool", 128, 128, "pool"),
    "vgg9": (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
    "vgg16": (
        *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
        *(512, 512, 512, "pool", 512, 512, 512, "pool"),
    ),
}
SPIKING = "spiking_"
NAMES = (*_VGG, *(SPIKING + name for name in _VGG))


class FilterWidths(BaseModel):
    """Every width that pruning can change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    filters: tuple[int, ...] = Field(min_length=1)
    """Filters of each set."""


class Conv(BaseModel):
    """One convolution, with the batch normalisation after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conv: str
    """Path of its module."""
    norm: str
    """Path of the normalisation's."""
    active: str
    """Path of the module whose output says which filters are active: positive where they are."""
    reads: int | None
    """The set it reads; None is the image."""
    writes: int
    """The set it writes."""
    kernel: int = Field(gt=0)
    size: ImageSize
    """Height and width of its output."""
    bias: bool


class ConvArchitecture(BaseModel):
    """A convolutional classifier: convolutions, the mean over all places, one linear head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    image_size: ImageSize
    channels: int = Field(gt=0)
    classes: int = Field(ge=0)
    """Outputs of the head; 0 where the model ends at its feature."""
    convs: tuple[Conv, ...] = Field(min_length=1)
    feature: int = Field(ge=0)
    """The set whose means over all places are the feature."""
    time_steps: int = Field(gt=0)
    """1: not spiking."""
    widths: FilterWidths

    @property
    def keep_steps(self) -> int:
        """What the keep ratio counts in."""
        return KEEP_STEPS

    @property
    def feature_dim(self) -> int:
        """Length of the feature."""
        return self.widths.filters[self.feature]

    @property
    def spiking(self) -> bool:
        return self.time_steps > 1

    def inputs(self, conv: Conv) -> int:
        """Channels that a convolution reads."""
        return self.channels if conv.reads is None else self.widths.filters[conv.reads]

    def filters(self, conv: Conv) -> int:
        return self.widths.filters[conv.writes]

    def narrowed(self, steps_pruned: int | Fraction, mode: AttentionMode = "dims") -> ConvArchitecture:
        """The same network with each set of filters at keep ratio `1 - steps_pruned / keep_steps`."""
        if not 0 <= steps_pruned < KEEP_STEPS:
            raise ValueError(f"steps_pruned must be 0..{KEEP_STEPS - 1}, not {steps_pruned}")
        keep = float(KEEP_STEPS - steps_pruned) / KEEP_STEPS
        narrow = tuple(min(width, round_width(width * keep)) for width in self.widths.filters)
        return self.model_copy(update={"widths": FilterWidths(filters=narrow)})

    def rotated_form(self) -> ConvArchitecture:
        """Raises ModelError: there is no residual stream to rotate."""
        raise ModelError(f"{self.name} is no ViT and cannot be pruned by subspace: leave --prune out, or give channels")


def is_convnet(name: str | None) -> bool:
    """Whether a model's name is one of ours; all others are timm's."""
    return name in NAMES


def convnet(
    name: str, *, image_size: ImageSize | int | None = None, channels: int = 3, classes: int
) -> ConvArchitecture:
    """The shape of a whole network.

    Args:
        name: one of `NAMES`.
        image_size: one number is a square, pixels; 32 by default.

    Raises:
        ModelError: no such network, or the image is too small for it.
    """
    if not is_convnet(name):
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise ModelError(f"unknown network {name!r}; {f'did you mean {near[0]}?' if near else ', '.join(NAMES)}")
    size = ImageSize.of(32 if image_size is None else image_size)
    if min(size) < SMALLEST_IMAGE:
        raise ModelError(f"image size {size} is too small for {name}; give at least {SMALLEST_IMAGE} for each side")
    plain = name.removeprefix(SPIKING)
    convs, filters = _vgg_convs(plain, size)
    return ConvArchitecture(
        name=name,
        image_size=size,
        channels=channels,
        classes=classes,
        convs=convs,
        feature=convs[-1].writes,
        time_steps=TIME_STEPS if name.startswith(SPIKING) else 1,
        widths=FilterWidths(filters=filters),
    )


def vgg_plan(name: str, size: ImageSize) -> tuple[int | Literal["pool"], ...]:
    """A VGG's layers in order: the set that a convolution writes, or a pool, without those that would leave nothing."""
    plan: list[int | Literal["pool"]] = []
    count = 0
    for layer in _VGG[name.removeprefix(SPIKING)]:
        if layer == "pool":
            if min(size) >= 2:
                plan.append("pool")
                size = _pooled(size)
            continue
        plan.append(count)
        count += 1
    return tuple(plan)


def _pooled(size: ImageSize) -> ImageSize:
    return ImageSize(size.height // 2, size.width // 2)


def _vgg_convs(name: str, size: ImageSize) -> tuple[tuple[Conv, ...], tuple[int, ...]]:
    """After torchvision's VGG with batch normalisation; its classifier of three layers is left out."""
    filters = tuple(layer for layer in _VGG[name] if layer != "pool")
    convs, module = [], 0
    for layer in vgg_plan(name, size):
        if layer == "pool":
            module, size = module + 1, _pooled(size)
            continue
        convs.append(
            Conv(
                conv=f"features.{module}",
                norm=f"features.{module + 1}",
                active=f"features.{module + 2}",
                reads=layer - 1 if layer else None,
                writes=layer,
                kernel=3,
                size=size,
                bias=True,
            )
        )
        module += 3
    return tuple(convs), filters
