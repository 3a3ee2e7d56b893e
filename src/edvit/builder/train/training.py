"""One training loop for the base model, the sub-models and the fusion, on timm's optimiser, schedule and EMA."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.train.muon import AdaMuon
from edvit.errors import BuildError

Batch = TypeVar("Batch")
Optimizer = Literal["adamw", "nadamuon"]
"""timm's names. `nadamuon`: AdaMuon (arXiv 2507.11005) with Nesterov momentum for matrices, NAdamW for all else."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    lr: float
    """Peak learning rate; a cosine brings it down to 1 % of that."""
    weight_decay: float = 0.05
    warmup_epochs: float = 0.5
    ema_decay: float | None = None
    """Decay of the moving average of the weights a step; None trains without one. The average is what is kept."""
    clip_grad: float = 1.0
    layer_decay: float | None = None
    """Learning-rate factor from one block to the one before it; None is 1."""


def train(
    model: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    loss_of: Callable[[nn.Module, Batch], torch.Tensor],
    *,
    steps_per_epoch: int,
    schedule: Schedule,
    opt: Optimizer = "adamw",
    judge: Callable[[nn.Module], float] | None = None,
    device: TorchDevice = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Train `model` in place and return what to keep: the model itself, or its moving average.

    Args:
        batches: yields the batches of an epoch, given its number.
        loss_of: scalar loss of a batch.
        opt: the optimiser.
        judge: loss on held-out data, of a model in evaluation mode; what it finds least after any epoch is kept, in
            place of the last.
        device: where it trains; batches are moved there, and what is kept comes back to the CPU.
        progress: called with steps done and steps in all.

    Raises:
        BuildError: the loss is no longer a finite number.
    """
    if schedule.epochs == 0 or steps_per_epoch == 0:
        return model.eval()
    device.place(model)
    total = schedule.epochs * steps_per_epoch
    optimizer = create_optimizer_v2(
        model, opt=opt, lr=schedule.lr, weight_decay=schedule.weight_decay, layer_decay=schedule.layer_decay
    )
    if opt == "nadamuon":
        optimizer = AdaMuon(optimizer.param_groups, **optimizer.defaults)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=schedule.lr * 0.01,
        warmup_t=min(math.ceil(schedule.warmup_epochs * steps_per_epoch), total // 4),
        warmup_lr_init=schedule.lr * 0.01,
        t_in_epochs=False,
    )
    ema = ModelEmaV3(model, decay=schedule.ema_decay, use_warmup=True) if schedule.ema_decay else None
    step, least, kept = 0, math.inf, model
    scheduler.step_update(step)
    for epoch in range(schedule.epochs):
        model.train()
        for batch in batches(epoch):
            with device.autocast():
                loss = loss_of(model, device.move(batch))
            if not torch.isfinite(loss):
                raise BuildError(f"training diverged at step {step} of {total}: try a smaller learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_grad)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            if ema is not None:
                ema.update(model, step=step)
            progress(step, total)
        now = model if ema is None else ema.module
        if judge is None:
            kept = now
        elif (found := judge(now.eval())) < least:
            least, kept = found, copy.deepcopy(now)
    return kept.cpu().eval()
