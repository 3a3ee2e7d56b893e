from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edvit.builder.train.fusion import Fusion, FusionTraining, Samples, draw_present, train_fusion
from edvit.builder.train.training import Schedule

torch.set_num_threads(1)
DIMS = (3, 5, 2)


def random_fusion(seed=0):
    torch.manual_seed(seed)
    fusion = Fusion(DIMS, hidden=8, classes=4).eval()
    with torch.no_grad():
        fusion.stand_in.normal_()
        fusion.mean.normal_()
        fusion.std.uniform_(0.5, 2.0)
    return fusion


anything = st.floats(width=32)  # NaN and infinities, too
presence = st.lists(st.booleans(), min_size=3, max_size=3)


@settings(deadline=None)
@given(presence, arrays(np.float32, 10, elements=anything), arrays(np.float32, 10, elements=st.floats(-3, 3, width=32)))
def test_what_stands_where_a_feature_is_absent_does_not_matter(present, garbage, real):
    fusion = random_fusion()
    there = np.repeat(present, DIMS)
    mask = torch.tensor([present], dtype=torch.float32)
    with torch.no_grad():
        one = fusion(torch.from_numpy(np.where(there, real, garbage))[None], mask)
        other = fusion(torch.from_numpy(np.where(there, real, 0).astype(np.float32))[None], mask)
    assert torch.equal(one, other)
    assert one.isfinite().all()


@pytest.mark.parametrize("index", range(3))
def test_a_feature_that_is_there_matters(index):
    fusion, features = random_fusion(), torch.randn(1, 10, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 3)
    changed = features.clone()
    start = sum(DIMS[:index])
    changed[:, start : start + DIMS[index]] += 1
    without = mask.clone()
    without[0, index] = 0
    with torch.no_grad():
        assert (fusion(changed, mask) - fusion(features, mask)).abs().max() > 1e-3
        assert (fusion(features, without) - fusion(features, mask)).abs().max() > 1e-3
        assert torch.equal(fusion(changed, without), fusion(features, without))


@given(st.integers(1, 50), st.integers(1, 6), st.floats(0, 1), st.integers(0, 9))
def test_never_is_everything_absent(batch, submodels, drop, seed):
    present = draw_present(batch, submodels, drop, torch.Generator().manual_seed(seed))
    assert present.shape == (batch, submodels)
    assert set(present.unique().tolist()) <= {0.0, 1.0}
    assert (present.sum(dim=1) >= 1).all()


def test_features_are_dropped_as_often_as_asked():
    present = draw_present(20_000, 5, 0.3, torch.Generator().manual_seed(0))
    assert (1 - present).mean(dim=0).tolist() == pytest.approx([0.3] * 5, abs=0.02)
    everything_lost = draw_present(6_000, 3, 1.0, torch.Generator().manual_seed(0))
    assert (everything_lost.sum(dim=1) == 1).all()
    assert everything_lost.mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def samples(count, seed):
    """Two sub-models see one bit each of a class in four, off centre and out of scale; noise besides."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    bits = torch.stack([labels // 2, labels % 2], dim=1).float() * 2 - 1
    features = torch.randn(count, 6, generator=generator) * 0.3
    features[:, 0] += bits[:, 0]
    features[:, 3] += bits[:, 1]
    return features * 50 + 300, labels


def trained(drop=0.3, seed=0):
    features, labels = samples(2000, 0)
    teacher = 4.0 * torch.nn.functional.one_hot(labels, 4).float()
    how = FusionTraining(Schedule(epochs=10, lr=5e-3, ema_decay=0.99), drop=drop)
    held_out = Samples(*samples(500, 2))
    return train_fusion(
        Samples(features, labels), teacher, held_out, heads=blank_heads(3, 3), hidden=32, how=how, seed=seed
    ).model


def blank_heads(*dims):
    heads = [torch.nn.Linear(dim, 4) for dim in dims]
    for head in heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return heads


def accuracy(fusion, present):
    features, labels = samples(1000, 1)
    with torch.no_grad():
        scores = fusion(features, torch.tensor([present], dtype=torch.float32).expand(len(features), -1))
    return (scores.argmax(dim=1) == labels).float().mean().item()


def test_training_uses_every_feature_and_gets_over_a_lost_one():
    fusion = trained()
    assert not fusion.training
    assert accuracy(fusion, [1, 1]) > 0.95
    # One bit is lost: one of two classes is left to guess.
    assert 0.42 < accuracy(fusion, [1, 0]) < 0.58
    assert 0.42 < accuracy(fusion, [0, 1]) < 0.58
    assert accuracy(fusion, [0, 0]) < 0.35
    assert fusion.stand_in.abs().max() > 0, "the stand-in is learned"


def test_it_starts_as_the_mean_of_the_heads_and_never_ends_worse_on_held_out_data():
    """Here the heads are right, and what is learnt from labels at random is not."""
    heads = [torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)]
    features = (samples(400, 0)[0] - 300) / 50
    start = Fusion((3, 3), 16, 4)
    start.start(features, heads)
    present = torch.ones(400, 2)
    with torch.no_grad():
        mean = (heads[0](features[:, :3]) + heads[1](features[:, 3:])) / 2
        assert torch.allclose(start(features, present), mean, atol=1e-3)
    noise = Samples(features, torch.randint(4, (400,), generator=torch.Generator().manual_seed(3)))
    held_out = Samples(features, mean.argmax(dim=1))
    how = FusionTraining(Schedule(epochs=6, lr=5e-3))
    teacher = torch.nn.functional.one_hot(noise.labels, 4).float()
    fusion = train_fusion(noise, teacher, held_out, heads=heads, hidden=16, how=how, seed=0).model
    long = train_fusion(noise, teacher, noise, heads=heads, hidden=16, how=how, seed=0).model

    def loss(one):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(one(features, present), held_out.labels).item()

    assert loss(fusion) < loss(long)


def test_the_seed_decides():
    one, again, other = (trained(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["tower.0.weight"], other["tower.0.weight"])


def test_a_feature_that_never_changes_does_no_harm():
    features, labels = samples(500, 0)
    features[:, 5] = 7.0
    how = FusionTraining(Schedule(epochs=2, lr=5e-3))
    teacher = torch.nn.functional.one_hot(labels, 4).float()
    seen = Samples(features, labels)
    fusion = train_fusion(seen, teacher, seen, heads=blank_heads(6), hidden=16, how=how, seed=0).model
    with torch.no_grad():
        assert fusion(features, torch.ones(len(features), 1)).isfinite().all()
