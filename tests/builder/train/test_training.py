from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from edvit.builder.train.training import Curve, Schedule, train
from edvit.errors import BuildError

torch.set_num_threads(1)
STEPS = 10


def line(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def batches(epoch, first=0):
    generator = torch.Generator().manual_seed(epoch)
    for step in range(STEPS):
        x = torch.randn(16, 3, generator=generator)
        if step >= first:
            yield x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3


def error(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def run(model, schedule, **more):
    return trained(model, schedule, **more).model


def trained(model, schedule, **more):
    return train(model, batches, error, steps_per_epoch=STEPS, schedule=schedule, generator=torch.Generator(), **more)


def rates(schedule, monkeypatch):
    """Learning rate of every step, as the optimiser saw it."""
    seen = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    run(line(), schedule)
    return [max(groups) for groups in seen]


def test_the_rate_warms_up_to_its_peak_and_falls_to_a_hundredth(monkeypatch):
    seen = rates(Schedule(epochs=8, lr=0.1, warmup_epochs=2.0), monkeypatch)
    assert len(seen) == 80
    assert seen[0] == pytest.approx(0.001)
    assert all(a < b for a, b in itertools.pairwise(seen[:20]))
    assert 0.09 < seen[19] <= 0.1
    # timm's cosine starts with the warm-up and shows after it.
    assert all(a > b for a, b in itertools.pairwise(seen[20:]))
    for step in (20, 50, 79):
        cosine = 0.001 + 0.5 * (0.1 - 0.001) * (1 + math.cos(math.pi * step / 80))
        assert seen[step] == pytest.approx(cosine)


def test_a_short_training_warms_up_for_a_quarter_at_most(monkeypatch):
    seen = rates(Schedule(epochs=1, lr=0.1, warmup_epochs=5.0), monkeypatch)
    assert seen.index(max(seen)) == STEPS // 4
    assert max(seen) > 0.08


def test_it_learns():
    model = run(line(), Schedule(epochs=30, lr=0.05, weight_decay=0.0))
    assert not model.training
    with torch.no_grad():
        assert error(model, next(batches(99))) < 1e-2


def test_no_epochs_leave_the_weights_as_they_are():
    assert trained(line(), Schedule(epochs=0, lr=0.1)).curve == Curve()
    model = line()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = run(model, Schedule(epochs=0, lr=0.1, ema_decay=0.9))
    assert kept is model
    assert not kept.training
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())


def test_the_average_is_kept_not_the_last_weights():
    plain, averaged = line(), line()
    last = run(plain, Schedule(epochs=3, lr=0.05))
    kept = run(averaged, Schedule(epochs=3, lr=0.05, ema_decay=0.9))
    assert last is plain
    assert kept is not averaged
    # Both were trained alike; what is kept lags behind.
    assert torch.equal(averaged.weight, plain.weight)
    start, end, mean = line().weight, plain.weight, kept.weight
    assert ((mean - end).abs() > 1e-4).all()
    assert ((mean - start).sign() == (end - start).sign()).all()
    assert ((mean - start).abs() < (end - start).abs()).all()
    kept(torch.randn(2, 3)).sum().backward()  # an ordinary module, not a frozen copy


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverging_loss_stops_with_what_to_try(value):
    def diverge(model, batch):
        return error(model, batch) * (value if next(steps) == 3 else 1.0)

    steps = iter(range(100))
    with pytest.raises(BuildError, match="diverged at step 3 of 20: try a smaller learning rate"):
        train(
            line(),
            batches,
            diverge,
            steps_per_epoch=STEPS,
            schedule=Schedule(epochs=2, lr=0.1),
            generator=torch.Generator(),
        )


def test_the_curve_has_the_mean_loss_of_each_epoch_and_what_the_judge_found():
    seen, verdicts = [], [3.0, 1.0, 2.0]

    def noted(model, batch):
        loss = error(model, batch)
        seen.append(loss.item())
        return loss

    found = train(
        line(),
        batches,
        noted,
        steps_per_epoch=STEPS,
        schedule=Schedule(epochs=3, lr=0.05),
        generator=torch.Generator(),
        judge=lambda model: verdicts[len(seen) // STEPS - 1],
    ).curve
    assert found.loss == pytest.approx([sum(seen[i : i + STEPS]) / STEPS for i in range(0, 30, STEPS)])
    assert found.loss[0] > found.loss[2]
    assert found.validation == (3.0, 1.0, 2.0)
    assert found.note() == {"loss": list(found.loss), "validation": verdicts}


def test_progress_counts_every_step():
    seen = []
    run(line(), Schedule(epochs=2, lr=0.1), progress=lambda *state: seen.append(state))
    assert seen == [(step, 20) for step in range(1, 21)]


def test_the_same_seed_gives_the_same_weights():
    one, other = (run(line(), Schedule(epochs=2, lr=0.1, ema_decay=0.9)) for _ in range(2))
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_judge_keeps_what_it_found_best(ema):
    """It likes what comes after the second of five epochs."""
    seen, weights = [], []

    def judge(model):
        assert not model.training
        seen.append(len(seen))
        weights.append(model.weight.detach().clone())
        return abs(seen[-1] - 1.0)

    kept = run(line(), Schedule(epochs=5, lr=0.1, ema_decay=ema), judge=judge)
    assert len(seen) == 5
    assert torch.equal(kept.weight, weights[1])
    assert not torch.equal(kept.weight, weights[4])


def test_matrices_learn_by_orthogonalised_steps():
    def batches_of_four(epoch, first=0):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(STEPS):
            x = torch.randn(16, 8, generator=generator)
            yield x, x @ truth

    torch.manual_seed(0)
    truth, model = torch.randn(8, 4), nn.Linear(8, 4)
    schedule = Schedule(epochs=30, lr=0.3, weight_decay=0.0)
    train(
        model,
        batches_of_four,
        error,
        steps_per_epoch=STEPS,
        schedule=schedule,
        generator=torch.Generator(),
        opt="nadamuon",
    )
    with torch.no_grad():
        assert error(model, next(batches_of_four(99))) < 1e-2
