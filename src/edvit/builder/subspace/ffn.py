"""Which FFN units a block keeps."""

from __future__ import annotations

import torch
from torch import Tensor


def by_energy(variance: Tensor, writer: Tensor, count: int) -> Tensor:
    """The `count` units that write most, ascending: `variance` `[hidden]` times squared norm in `[dim, hidden]`."""
    return best(variance * writer.square().sum(dim=0), count)


def best(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, ascending; of equal scores the lower index."""
    return torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values
