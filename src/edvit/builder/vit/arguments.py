"""Which arguments of a timm model make it another one than it is by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from timm.layers import GELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from edvit.builder.vit.backbone import timm_model
from edvit.errors import ModelError

Traits: TypeAlias = "tuple[dict[str, tuple[type, dict[str, Any]]], dict[str, tuple[int, ...]]]"
"""The kind and settings of each part, and the shape of each tensor."""
MOST_DEPTH = 100
"""Blocks of a model that is built to see what it is; timm has none of over 64, and thousands take minutes."""
_PLAIN = (bool, int, float, str, tuple, type(None))


def changes(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Which arguments, given to timm's model of a name, make it another model than it is without them.

    Args:
        name: timm's.
        arguments: of VisionTransformer, as JSON has them; any other counts as a change.

    Raises:
        ModelError: timm has no such model.
    """
    with torch.device("meta"):
        own = _traits(timm_model(name))
        return [what for what, value in arguments.items() if _traits_with(name, what, value) != own]


def _traits_with(name: str, what: str, value: Any) -> Traits | None:
    """`_traits` of the model that is built with an argument; None: it cannot be built so."""
    # timm takes others as well, among them a file to be loaded, which a config from anywhere must not name.
    is_too_deep = what == "depth" and isinstance(value, int) and value > MOST_DEPTH
    if is_too_deep or what not in inspect.signature(VisionTransformer.__init__).parameters:
        return None
    try:
        return _traits(timm_model(name, **{what: value}))
    except ModelError:
        return None


def _traits(model: VisionTransformer) -> Traits:
    """What a model computes, without its weights: the kinds of its parts with their settings, and its shapes."""
    kinds = {}
    for name, part in model.named_modules():
        # timm's own GELU, which is what it takes the name for, is PyTorch's.
        same = nn.GELU() if type(part) is GELU else part
        plain = {what: value for what, value in vars(same).items() if isinstance(value, _PLAIN)}
        kinds[name] = (type(same), plain)
    return kinds, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
