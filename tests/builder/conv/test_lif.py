from __future__ import annotations

import copy

import torch

from edvit.builder.conv.lif import Lif, unrolled

torch.set_num_threads(1)


def test_evaluation_fires_as_spikingjelly_does():
    layer = Lif()
    current = torch.randn(4, 3, 5, 6, 6) * 2
    trained = layer.train()(current)
    assert torch.equal(layer.eval()(current), trained)
    assert set(trained.unique().tolist()) == {0.0, 1.0}


def test_potential_leaks_fires_at_the_threshold_and_is_reset():
    # v: 0.75, then 0.75 + (1.3 - 0.75) / 2 = 1.025: fires; then from 0 again.
    current = torch.tensor([1.5, 1.3, 1.5, 2.0]).view(4, 1)
    assert unrolled(current).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_training_has_a_gradient_and_leaves_nothing_behind():
    layer = Lif().train()
    current = torch.randn(4, 2, 3, requires_grad=True)
    layer(current).sum().backward()
    assert current.grad is not None and current.grad.abs().sum() > 0
    copy.deepcopy(layer)  # as a moving average of weights does; a kept graph would refuse
    again = current.detach()
    assert torch.equal(layer(again), layer(again))
