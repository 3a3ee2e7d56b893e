"""Which FFN units a block keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from edvit.builder.subspace.refit import penalised_cholesky

ROUNDS = 6
"""Eliminations, with a refit after each: one leaves pairs of units that stand in for each other both out."""


def by_energy(variance: Tensor, writer: Tensor, count: int) -> Tensor:
    """The `count` units that write most, ascending: `variance` `[hidden]` times squared norm in `[dim, hidden]`."""
    return best(variance * writer.square().sum(dim=0), count)


def by_elimination(gram: Tensor, cross: Tensor, prior: Tensor, count: int, penalty: float) -> Tensor:
    """The `count` units, ascending, that are left when those that a refit misses least are taken out.

    Without unit `j` and with all others refitted, the squared error grows by `|W_j|^2 / [(gram + penalty I)^-1]_jj`
    (optimal brain surgeon, Hassibi & Stork 1993, for a whole column).

    Args:
        gram: centred `sum w x x'` of the units, `[hidden, hidden]`.
        cross: centred `sum w x y'` with the target, `[hidden, dim]`.
        prior: weights the refit starts from, `[dim, hidden]`.
        penalty: as in `Moments.penalty`.
    """
    kept = torch.arange(len(gram))
    for left in reversed(range(ROUNDS)):
        target = count + (len(gram) - count) * left // ROUNDS
        g, p = gram[kept][:, kept], prior[:, kept].T
        factor = penalised_cholesky(g, penalty)
        if factor is None:
            return kept[:count]
        inverse = torch.cholesky_inverse(factor)
        weight = p + inverse @ (cross[kept] - g @ p)
        kept = kept[best(weight.square().sum(dim=1) / inverse.diagonal(), target)]
    return kept


def best(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, ascending; of equal scores the lower index."""
    return torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values
