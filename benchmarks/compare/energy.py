"""Joules of arithmetic for one image, counted from operations: what plain and spiking networks can be compared by.

A multiply-accumulate takes a multiplication and an addition; a spike that arrives takes an addition alone. The joules
of each are those of a 45 nm chip (Horowitz, *Computing's Energy Problem*, ISSCC 2014), which work on spiking networks
counts with. Memory, which costs more than arithmetic on every real device, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edvit.builder.conv.network import ConvNet
from edvit.plan.conv_cost import conv_flops
from edvit.plan.cost import attention_flops, model_cost
from edvit.shape.any import AnyArchitecture
from edvit.shape.conv import ConvArchitecture

ADD_J = 0.9e-12
"""Joules of an addition in float32."""
MULTIPLY_J = 3.7e-12
"""Joules of a multiplication in float32."""
MULTIPLY_ADD_INT8_J = 0.2e-12 + 0.1e-12
"""Joules of an 8-bit multiplication and a 32-bit addition."""


@dataclass(frozen=True)
class Operations:
    """Operations for one image, on all devices together."""

    multiply_adds: float
    """Multiply-adds of float32 numbers."""
    additions: float = 0.0
    """Additions that spikes cause."""
    multiply_adds_int8: float = 0.0
    """Multiply-adds of 8-bit numbers."""

    @property
    def joules(self) -> float:
        in_float = self.multiply_adds * (MULTIPLY_J + ADD_J) + self.additions * ADD_J
        return in_float + self.multiply_adds_int8 * MULTIPLY_ADD_INT8_J

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.multiply_adds + other.multiply_adds,
            self.additions + other.additions,
            self.multiply_adds_int8 + other.multiply_adds_int8,
        )


def spiking_operations(model: ConvNet, images: Tensor) -> Operations:
    """Operations of a spiking network: the first convolution's multiply-adds, then one addition a spike and weight.

    Args:
        model: in evaluation mode.
        images: normalised, `[count, channels, H, W]`; what fires depends on them.
    """
    shape: ConvArchitecture = model.architecture
    rates = [1.0] * len(shape.convs)
    modules = dict(model.named_modules())

    def rate(index: int) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            rates[index] = float((inputs[0] != 0).double().mean())

        return hook

    hooks = [
        modules[conv.conv].register_forward_pre_hook(rate(index))
        for index, conv in enumerate(shape.convs)
        if conv.reads is not None
    ]
    try:
        with torch.inference_mode():
            model.forward_features(images)
    finally:
        for handle in hooks:
            handle.remove()
    multiply_adds, additions = 0.0, 0.0
    for conv, share in zip(shape.convs, rates, strict=True):
        dense = conv.kernel**2 * shape.inputs(conv) * shape.filters(conv) * conv.size.pixels
        if conv.reads is None:
            multiply_adds += dense
        else:
            additions += share * dense * shape.time_steps
    return Operations(multiply_adds, additions)


def dense_operations(architecture: AnyArchitecture, *, int8: bool = False) -> Operations:
    """Operations of a network whose every weight meets a number: half its floating-point operations."""
    total = model_cost(architecture).flops / 2
    in_float = float_flops(architecture) / 2 if int8 else total
    return Operations(in_float, multiply_adds_int8=total - in_float)


def float_flops(architecture: AnyArchitecture) -> int:
    """Floating-point operations that a model's int8 file leaves in float32: convolutions, and what has no weights."""
    if isinstance(architecture, ConvArchitecture):
        return conv_flops(architecture.model_copy(update={"classes": 0}))
    return attention_flops(architecture)


def model_operations(model: Any, architecture: AnyArchitecture, images: Tensor, *, int8: bool = False) -> Operations:
    """Operations of a model of any family as a device runs it; those of a spiking one are all in float32."""
    if isinstance(architecture, ConvArchitecture) and architecture.spiking:
        return spiking_operations(model, images)
    return dense_operations(architecture, int8=int8)
