"""The narrow form of one block's heads, in the metric of real queries, keys and outputs.

A head's logits are `q k'` and what it writes is `o W`. Each is a product through `head_dim` dimensions, in any basis:
the best product through `r` of them is a singular value decomposition (Eckart-Young), and "best" means in the mean
over the data when both factors are first multiplied by the roots of their covariances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NULL = 1e-10
"""Eigenvalues below this share of the largest are zero: float32 activations hold no more."""


@dataclass(frozen=True)
class HeadMaps:
    """How one head's dimensions become `r`: `q -> q @ query` and so on."""

    query: Tensor
    """`[head_dim, r]`"""
    key: Tensor
    """`[head_dim, r]`"""
    value: Tensor
    """`[head_dim, r]`, on values and so on the head's output."""
    back: Tensor
    """`[r, dim]`: the narrow output times this stands in for `o W`."""


def logit_maps(query: Tensor, key: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`A, B` `[head_dim, rank]` with `(q A)(k B)'` closest to `q k'` over queries and keys of these second moments.

    `U S V' = svd(Cq^(1/2) Ck^(1/2))`, `A = Cq^(-1/2) U_r S_r^(1/2)`, `B = Ck^(-1/2) V_r S_r^(1/2)`.
    """
    if rank == len(query):
        identity = torch.eye(rank, dtype=query.dtype)
        return identity, identity
    root_q, inverse_q = roots(query)
    root_k, inverse_k = roots(key)
    u, s, vt = torch.linalg.svd(root_q @ root_k)
    scale = s[:rank].sqrt()
    return inverse_q @ u[:, :rank] * scale, inverse_k @ vt[:rank].T * scale


def value_maps(covariance: Tensor, writer: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`A` `[head_dim, rank]` and `B` `[rank, dim]` with `o A B` closest to `o W` over outputs of this covariance.

    `U S V' = svd(C^(1/2) W)`, `A = C^(-1/2) U_r`, `B = U_r' C^(1/2) W`.
    """
    if rank == len(covariance):
        return torch.eye(rank, dtype=covariance.dtype), writer
    root, inverse = roots(covariance)
    u = torch.linalg.svd(root @ writer, full_matrices=False)[0]
    if u.shape[1] < rank:  # the stream is narrower than the head
        u = torch.linalg.svd(root @ writer)[0]
    return inverse @ u[:, :rank], u[:, :rank].T @ root @ writer


def chosen_logit_dims(query: Tensor, key: Tensor, rank: int) -> Tensor:
    """The `rank` dimensions whose products are largest, ascending; of second moments' diagonals `[..., head_dim]`."""
    energy = (query * key).reshape(-1, query.shape[-1]).sum(dim=0)
    return _largest(energy, rank)


def chosen_value_dims(covariance: Tensor, writer: Tensor, rank: int) -> Tensor:
    """The `rank` output dimensions that write most, ascending."""
    return _largest(covariance.diagonal() * writer.square().sum(dim=1), rank)


def chosen_heads(covariances: Tensor, writers: Tensor, count: int) -> Tensor:
    """The `count` heads that write most, ascending; `[heads, head_dim, head_dim]` and `[heads, head_dim, dim]`."""
    return _largest(torch.einsum("hde,hdm,hem->h", covariances, writers, writers), count)


def selection(dims: Tensor, width: int) -> Tensor:
    """The map that keeps these dimensions, `[width, kept]`."""
    return torch.eye(width, dtype=torch.float64)[:, dims]


def _largest(energy: Tensor, count: int) -> Tensor:
    return torch.sort(torch.argsort(energy, descending=True, stable=True)[:count]).values


def roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of symmetric positive semidefinite matrices `[..., d, d]`."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0.0)
    there = values > NULL * values[..., -1:]
    inverse = torch.where(there, values, 1.0).rsqrt() * there
    return (vectors * values.sqrt()[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT
