from __future__ import annotations

import pytest
import torch

from edvit.builder.vit.fisher import projected


def gradients(weights, x, count):
    """`[count, parameters]` of a linear model's projections, each with signs of its own."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        leaf = weights.clone().requires_grad_()
        log_p = (x @ leaf).log_softmax(dim=-1)
        found.append(torch.autograd.grad(projected(log_p, generator), leaf)[0].flatten())
    return torch.stack(found)


def exact(weights, x):
    """`sum_y p_y J_y J_y'`, one class at a time."""
    leaf = weights.clone().requires_grad_()
    log_p = (x @ leaf).log_softmax(dim=-1)[0]
    rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0].flatten() for one in log_p]
    return sum(p * torch.outer(row, row) for p, row in zip(log_p.detach().exp(), rows, strict=True))


@pytest.mark.parametrize("scale", [0.1, 2.0], ids=["unsure", "confident"])
def test_the_mean_over_all_signs_is_the_fisher_information(scale):
    torch.manual_seed(1)
    weights, x = scale * torch.randn(5, 3, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    every = torch.unique(gradients(weights, x, 200).round(decimals=12), dim=0)
    assert len(every) == 8, "vectors of three signs"
    torch.testing.assert_close(every.T @ every / 8, exact(weights, x), rtol=1e-6, atol=1e-10)


def test_the_error_of_one_projection_is_bounded_however_confident_the_model():
    torch.manual_seed(2)
    weights, x = 4 * torch.randn(5, 40, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    assert float((x @ weights).softmax(dim=-1).max()) > 0.98
    found, truth = gradients(weights, x, 4000).square(), exact(weights, x).diagonal()
    large = truth > 1e-6 * truth.max()
    torch.testing.assert_close(found.mean(dim=0)[large], truth[large], rtol=0.15, atol=0.0)
    assert float((found.var(dim=0)[large] / truth[large].square()).max()) < 2.2, "2, and the error of an estimate"


def test_gradients_of_one_image_are_its_own():
    torch.manual_seed(3)
    logits = torch.randn(4, 6, dtype=torch.float64)
    changed = torch.cat([logits[:1], logits[1:] + torch.randn(3, 6, dtype=torch.float64)])
    found = []
    for leaf in (logits.requires_grad_(), changed.requires_grad_()):
        value = projected(leaf.log_softmax(dim=-1), torch.Generator().manual_seed(5))
        found.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1:], found[1][1:])
