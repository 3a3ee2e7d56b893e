"""Ridge regression from streamed sums: the one solver behind every refit."""

from __future__ import annotations

import torch
from torch import Tensor

from edvit.errors import BuildError

ROUNDING = 1e-10
"""What float32 activations do not determine: a variance below this share of the mean square is noise."""


class Moments:
    """Weighted sums over rows for a regression of `y` on `x` with an intercept; float64, no row is kept.

    Args:
        inputs: width of `x`.
        outputs: width of `y`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.x = torch.zeros(inputs, dtype=torch.float64)
        self.y = torch.zeros(outputs, dtype=torch.float64)
        self.weight = 0.0

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add rows `x` `[..., inputs]`, `y` `[..., outputs]`, each with its weight `[...]`."""
        x = x.double().reshape(-1, x.shape[-1])
        y = y.double().reshape(-1, y.shape[-1])
        w = weights.double().reshape(-1, 1)
        read = w[:, 0] > 0
        if not bool(read.all()):
            x, y, w = x[read], y[read], w[read]
        weighted = w * x
        self.xx += weighted.T @ x
        self.xy += weighted.T @ y
        self.x += weighted.sum(dim=0)
        self.y += (w * y).sum(dim=0)
        self.weight += float(w.sum())

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariances times the total weight: of `x`, `[inputs, inputs]`, and of `x` and `y`, `[inputs, outputs]`."""
        total = max(self.weight, 1e-300)
        return self.xx - torch.outer(self.x, self.x) / total, self.xy - torch.outer(self.x, self.y) / total

    def penalty(self, ridge: float) -> float:
        """`ridge` times the mean eigenvalue of the centred `sum w x x'`, and a floor for inputs that hardly vary."""
        centred, plain = self.centred()[0].diagonal().mean(), self.xx.diagonal().mean()
        return ridge * max(float(centred), 0.0) + ROUNDING * float(plain)

    def solve(self, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight `[outputs, inputs]` and bias `[outputs]` of the layer that fits `y` best.

        Minimises `sum w |y - W x - b|^2 + penalty(ridge) |W - prior|^2`. What the rows do not determine
        stays as in the prior, so fewer rows than inputs are no error.

        Args:
            prior: `[outputs, inputs]`.
            ridge: relative to the data, above 0.

        Raises:
            BuildError: the sums are not finite.
        """
        gram, cross = self.centred()
        mean = self.x / max(self.weight, 1e-300)
        weight = prior.double() + ridge_step(gram, cross - gram @ prior.double().T, self.penalty(ridge)).T
        return weight, self.y / max(self.weight, 1e-300) - weight @ mean


def ridge_step(gram: Tensor, residual: Tensor, penalty: float) -> Tensor:
    """`(gram + penalty I)^-1 residual` by Cholesky, `[inputs, outputs]`; zero where there is no penalty and no input.

    Raises:
        BuildError: the sums are not finite.
    """
    if not bool(gram.isfinite().all()) or not bool(residual.isfinite().all()):
        raise BuildError("activations are NaN or infinite: nothing can be refitted to them")
    factor = penalised_cholesky(gram, penalty)
    return torch.zeros_like(residual) if factor is None else torch.cholesky_solve(residual, factor)


def penalised_cholesky(gram: Tensor, penalty: float) -> Tensor | None:
    """Lower factor of `gram + penalty I`; None where both are zero.

    Raises:
        BuildError: `gram` is further from positive semidefinite than the penalty makes good.
    """
    if penalty <= torch.finfo(torch.float64).tiny:
        return None
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram + penalty * torch.eye(len(gram), dtype=gram.dtype))
    if int(failed) != 0:
        raise BuildError("the calibration statistics are too ill-conditioned to refit to; use a larger ridge")
    return factor
