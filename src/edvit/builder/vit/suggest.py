"""Names of models that can be split, for a name that no model has."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import islice
from typing import Any

import timm
import torch

MODULES = ("vision_transformer", "deit", "zoo")
"""Where timm's plain Vision Transformers are, and ours."""


def near(name: str, why_not_splittable: Callable[[Any], str | None], count: int = 3) -> list[str]:
    """Up to `count` models that can be split: those whose names begin with `name`, short ones first; then the closest.

    Args:
        why_not_splittable: None for a model that can be split; asked of few, as they have to be built.
    """

    def can_be_split(other: str) -> bool:
        with torch.device("meta"):
            return why_not_splittable(timm.create_model(other, pretrained=False)) is None

    names = [model for module in MODULES for model in timm.list_models(module=module)]
    longer = sorted((model for model in names if model.startswith(name)), key=len)
    close = difflib.get_close_matches(name, names, n=20)
    return list(islice(filter(can_be_split, dict.fromkeys([*longer, *close])), count))
