"""The importance of every component of a base model, and the file it is cached in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edvit.errors import BuildError

_PARTS = ("dim", "attn", "heads", "hidden")


@dataclass(frozen=True)
class Scores:
    """Importance, higher is more important; float64 on the CPU. Only ranks within a row are compared."""

    dim: Tensor
    """`[dim]`, residual channels."""
    attn: Tensor
    """`[blocks, heads, head_dim]`, dimensions inside the heads."""
    heads: Tensor
    """`[blocks, heads]`, whole heads."""
    hidden: Tensor
    """`[blocks, hidden]`, FFN units."""
    criterion: str
    """`"fisher-kl"`, `"kl"`, `"magnitude"` or `"random"`."""

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {part: getattr(self, part).contiguous() for part in _PARTS}
        save_file(tensors, path, metadata={"criterion": self.criterion})

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            BuildError: the file is missing, damaged or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                criterion = (file.metadata() or {})["criterion"]
                tensors = {part: file.get_tensor(part) for part in _PARTS}
                return cls(**tensors, criterion=criterion)
        except (OSError, SafetensorError, KeyError) as error:
            raise BuildError(f"{path}: no readable scores ({type(error).__name__}); remove it and run again") from None

    @classmethod
    def mean(cls, scores: Sequence[Scores], images: Sequence[int]) -> Scores:
        """Scores on all images, from the scores on some of them each.

        Args:
            scores: of the same components by the same criterion; at least one.
            images: how many each of them was taken on.
        """
        tensors = {part: weighted_mean([getattr(one, part) for one in scores], images) for part in _PARTS}
        return cls(**tensors, criterion=scores[0].criterion)


def weighted_mean(values: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """`[...]` from tensors of the same shape; the very same tensor where there is one."""
    if len(values) == 1:
        return values[0]
    total = sum(weights)
    return torch.stack([value * (weight / total) for value, weight in zip(values, weights, strict=True)]).sum(dim=0)
