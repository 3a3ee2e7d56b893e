from __future__ import annotations

import copy
from functools import partial

import torch
from timm.optim import create_optimizer_v2, muon

from edvit.builder.train.muon import AdaMuon, is_orthogonalised
from edvit.builder.vit import backbone

torch.set_num_threads(1)


def step_all(model, optimizer, steps=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(8, 1, 8, 8, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        model(images).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def test_weights_are_bit_for_bit_those_of_timm_told_to_orthogonalise_in_float32(monkeypatch):
    torch.manual_seed(0)
    ours = backbone.create("vit_digits_patch4_8", channels=1, classes=10)
    theirs, bfloat16 = copy.deepcopy(ours), copy.deepcopy(ours)
    made = create_optimizer_v2(ours, opt="nadamuon", lr=0.01, weight_decay=0.05)
    mine = step_all(ours, AdaMuon(made.param_groups, **made.defaults))
    rounded = step_all(bfloat16, create_optimizer_v2(bfloat16, opt="nadamuon", lr=0.01, weight_decay=0.05))
    exact = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", exact)
    expected = step_all(theirs, create_optimizer_v2(theirs, opt="nadamuon", lr=0.01, weight_decay=0.05))
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert not torch.equal(rounded["blocks.0.mlp.fc1.weight"], expected["blocks.0.mlp.fc1.weight"])


def test_what_is_orthogonalised():
    shapes = {(64, 128): True, (96, 3, 4, 4): True, (4, 2048): False, (64,): False, (1, 196, 768): False, (3, 9): False}
    assert {shape: is_orthogonalised(torch.empty(shape)) for shape in shapes} == shapes
