"""Random projections of a model's Fisher information: one backward pass in place of one for each class."""

from __future__ import annotations

import torch
from torch import Tensor


def projected(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient `g` for any one image has `E[g g'] = sum_y p(y|x) (d log p(y|x)) (d log p(y|x))'`.

    It is `sum_y z_y sqrt(p(y|x)) log p(y|x)`, `z_y` random signs (Rademacher) and the probabilities held constant: the
    cross terms of two classes have mean zero. Its square's relative variance is at most 2. That of a `y` drawn from
    `p(.|x)` has no bound: a confident model is right in most draws, where its gradient is close to zero.

    Args:
        log_p: `[batch, classes]`, with a graph.
        generator: of the signs, on the CPU.

    Returns:
        The sum over the batch, a scalar. Gradients with respect to what one image owns are that image's.
    """
    signs = torch.randint(0, 2, log_p.shape, generator=generator).to(log_p) * 2 - 1
    weights = log_p.detach().exp().sqrt() * signs
    return (weights * log_p).sum()
