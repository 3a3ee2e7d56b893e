"""The narrow heads are the best of their rank, checked against the definition."""

from __future__ import annotations

import pytest
import torch

from edvit.builder.subspace import attention


def samples(rows=400, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixed


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_logits_lose_the_small_singular_values_and_no_more(rank):
    q, k = samples(), samples(seed=1)
    a, b = attention.logit_maps(q.T @ q, k.T @ k, rank)
    error = (q @ k.T - (q @ a) @ (k @ b).T).square().sum()
    best = torch.linalg.svdvals(q @ k.T)[rank:8].square().sum()  # Eckart-Young over every query with every key
    torch.testing.assert_close(error, best)


def test_values_lose_the_small_singular_values_and_no_more():
    o, w = samples(), samples(rows=8, width=20)
    a, b = attention.value_maps(o.T @ o, w, 3)
    error = (o @ w - o @ a @ b).square().sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(o @ w)[3:8].square().sum())


def test_full_rank_is_the_identity():
    q, o, w = samples(), samples(seed=2), samples(rows=8, width=20)
    assert all(torch.equal(part, torch.eye(8).double()) for part in attention.logit_maps(q.T @ q, q.T @ q, 8))
    a, b = attention.value_maps(o.T @ o, w, 8)
    assert torch.equal(a @ b, w)


def test_singular_statistics_are_no_error():
    """Queries of three dimensions only, values that never vary: what is there is exact, nothing is infinite."""
    q, k = samples(), samples(seed=1)
    q[:, 3:] = 0.0
    a, b = attention.logit_maps(q.T @ q, k.T @ k, 4)
    torch.testing.assert_close((q @ a) @ (k @ b).T, q @ k.T, atol=1e-6, rtol=1e-6)
    zero = torch.zeros(8, 8, dtype=torch.float64)
    for part in (*attention.logit_maps(zero, zero, 4), *attention.value_maps(zero, samples(rows=8, width=20), 4)):
        assert bool(part.isfinite().all())


def test_a_stream_narrower_than_the_head():
    o, w = samples(), samples(rows=8, width=2)[:, :2]
    a, b = attention.value_maps(o.T @ o, w, 5)
    assert a.shape == (8, 5)
    assert b.shape == (5, 2)
    torch.testing.assert_close(o @ a @ b, o @ w)


def test_choices():
    query, key = torch.tensor([[4.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0], [9.0, 1.0, 0.0]])
    assert attention.chosen_logit_dims(query, key, 2).tolist() == [1, 2]  # 0, 3, 2
    covariance, writer = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.tensor([[4.0], [1.0], [1.0]])
    assert attention.chosen_value_dims(covariance, writer, 2).tolist() == [0, 2]  # 16, 4, 9
    heads = torch.stack([torch.eye(3), 2 * torch.eye(3), 3 * torch.eye(3)])
    writers = torch.stack([torch.ones(3, 2), torch.zeros(3, 2), torch.ones(3, 2)])
    assert attention.chosen_heads(heads, writers, 2).tolist() == [0, 2]
