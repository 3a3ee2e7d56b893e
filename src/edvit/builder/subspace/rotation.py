"""Which directions of the residual stream a class group keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from edvit.errors import BuildError


def leading(moment: Tensor, count: int, gradient: Tensor | None = None, mix: float = 1.0) -> Tensor:
    """An orthonormal basis of the `count` directions to keep, float64 `[dim, count]`.

    Without `gradient` the leading eigenvectors of `S = moment`: what is cut has the least energy. With it the span of
    `G^(-1/2) U`, `U` the leading eigenvectors of `G^(1/2) S G^(1/2)`: what is cut costs the output least to second
    order, `G = gradient / tr gradient + mix I / dim`.

    Args:
        moment: second moment of the normalised stream, float64 `[dim, dim]`.
        count: 1 to dim.
        gradient: second moment of gradients with respect to the normalised stream.
        mix: share of the identity in `G`, above 0: infinite would be `gradient=None`.

    Raises:
        BuildError: the moments are not finite.
    """
    if not bool(moment.isfinite().all()) or (gradient is not None and not bool(gradient.isfinite().all())):
        raise BuildError("the stream's statistics are NaN or infinite")
    dim = len(moment)
    trace = 0.0 if gradient is None else float(gradient.trace())
    if gradient is None or trace == 0.0:
        return _eigenvectors(moment, count)
    metric = gradient / trace + mix * torch.eye(dim, dtype=torch.float64) / dim
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.sqrt() @ vectors.T
    inverse_root = vectors * values.rsqrt() @ vectors.T
    basis: Tensor = torch.linalg.qr(inverse_root @ _eigenvectors(root @ moment @ root, count))[0]
    return basis


def _eigenvectors(moment: Tensor, count: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(moment)[1].flip(1)[:, :count]
    # The sign of an eigenvector is free; fix it, so that the same statistics give the same model.
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def of_vectors(rotation: Tensor, count: int) -> Tensor:
    """The rotation `[dim, kept]` of `count` vectors side by side, `[count * dim, count * kept]`."""
    same = torch.eye(count, dtype=rotation.dtype, device=rotation.device)
    return torch.kron(same, rotation.contiguous())
