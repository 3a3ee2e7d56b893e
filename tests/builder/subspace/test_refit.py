"""Ridge regression against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edvit.builder.subspace import ffn
from edvit.builder.subspace.refit import Moments
from edvit.errors import BuildError


def moments_of(x, y, w, batches=3):
    moments = Moments(x.shape[1], y.shape[1])
    for part in torch.tensor_split(torch.arange(len(x)), batches):
        moments.add(x[part], y[part], w[part])
    return moments


def data(rows=200, inputs=12, outputs=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64) + 3.0
    y = torch.randn(rows, outputs, generator=generator, dtype=torch.float64) + x[:, :outputs]
    return x, y, torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1


def test_equals_least_squares_as_the_ridge_vanishes():
    x, y, w = data()
    weight, bias = moments_of(x, y, w).solve(torch.zeros(5, 12), ridge=1e-12)
    root = w.sqrt()[:, None]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1) * root
    expected = np.linalg.lstsq(design.numpy(), (y * root).numpy(), rcond=None)[0]
    np.testing.assert_allclose(torch.cat([weight, bias[:, None]], dim=1).T.numpy(), expected, atol=1e-8)


def test_is_the_minimum_of_what_it_says():
    x, y, w = data(rows=8)  # fewer rows than inputs
    prior = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moments = moments_of(x, y, w)
    weight, bias = moments.solve(prior, ridge=0.05)
    scale = moments.penalty(0.05)
    parameters = (weight.clone().requires_grad_(), bias.clone().requires_grad_())
    error = y - x @ parameters[0].T - parameters[1]
    loss = (w[:, None] * error.square()).sum() + scale * (parameters[0] - prior).square().sum()
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.abs().max() < 1e-9


def test_a_weight_of_zero_is_a_row_left_out_and_two_are_a_row_twice():
    x, y, _ = data()
    w = torch.ones(len(x), dtype=torch.float64)
    w[:50] = 0.0
    w[50:60] = 2.0
    repeated = torch.cat([torch.arange(50, 200), torch.arange(50, 60)])
    plain = moments_of(x[repeated], y[repeated], torch.ones(len(repeated)))
    for got, expected in zip(
        moments_of(x, y, w).solve(torch.zeros(5, 12), 1e-3), plain.solve(torch.zeros(5, 12), 1e-3), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_constant_inputs_leave_the_prior_and_fit_the_mean():
    x = torch.full((40, 12), 2.0)
    y = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    prior = torch.ones(5, 12)
    weight, bias = moments_of(x, y, torch.ones(40)).solve(prior, 1e-3)
    torch.testing.assert_close(weight, prior.double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias, y.mean(dim=0) - 24.0, atol=1e-3, rtol=0)


def test_no_rows_leave_the_prior():
    weight, _ = Moments(12, 5).solve(torch.ones(5, 12), 1e-3)
    assert torch.equal(weight, torch.ones(5, 12).double())


def test_a_prior_that_fits_is_kept():
    x, _, w = data()
    prior = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight, bias = moments_of(x, x @ prior.T + 7.0, w).solve(prior, ridge=10.0)
    torch.testing.assert_close(weight, prior)
    torch.testing.assert_close(bias, torch.full((5,), 7.0).double())


def test_nan_is_an_error():
    x, y, w = data()
    y[3, 2] = float("nan")
    with pytest.raises(BuildError, match="NaN"):
        moments_of(x, y, w).solve(torch.zeros(5, 12), 1e-3)


def test_energy_takes_variance_times_outgoing_norm():
    variance = torch.tensor([1.0, 9.0, 4.0, 0.0])
    writer = torch.tensor([[3.0, 1.0, 1.0, 9.0], [0.0, 0.0, 1.0, 9.0]])
    assert ffn.by_energy(variance, writer, 2).tolist() == [0, 1]  # 9, 9, 8, 0
