"""One training loop for the base model, the sub-models and the fusion, on timm's optimiser, schedule and EMA."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from edvit.builder.jobs.checkpoint import Checkpoint, State
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.train.muon import AdaMuon
from edvit.errors import BuildError

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
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


@dataclass(frozen=True)
class Curve:
    """The course of a training, a number for each epoch.

    Attributes:
        loss: mean over the epoch's batches.
        validation: what the judge found after the epoch; empty where there was none.
    """

    loss: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()

    def note(self) -> dict[str, list[float]]:
        """The curve as JSON values."""
        return {"loss": list(self.loss), "validation": list(self.validation)}


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """What a training gives.

    Attributes:
        model: what is kept, in evaluation mode on the CPU.
        curve: how it went.
    """

    model: Model
    curve: Curve


def train(
    model: Model,
    batches: Callable[[int, int], Iterator[Batch]],
    loss_of: Callable[[nn.Module, Batch], torch.Tensor],
    *,
    steps_per_epoch: int,
    schedule: Schedule,
    generator: torch.Generator,
    opt: Optimizer = "adamw",
    judge: Callable[[nn.Module], float] | None = None,
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained[Model]:
    """Train `model` in place and return what to keep: the model itself, or its moving average; and the course.

    Args:
        batches: yields the batches of an epoch, given its number and the first step to yield; an epoch that is
            interrupted goes on there, from the generator's state at its beginning.
        loss_of: scalar loss of a batch.
        generator: what `batches` draws from.
        opt: the optimiser.
        judge: loss on held-out data, of a model in evaluation mode; what it finds least after any epoch is kept, in
            place of the last.
        device: where it trains; batches are moved there, and what is kept comes back to the CPU.
        checkpoint: where its state is kept, and taken from if there is one; model and curve are the same to the last
            bit.
        progress: called with steps done and steps in all.

    Raises:
        BuildError: the loss is no longer a finite number.
    """
    if schedule.epochs == 0 or steps_per_epoch == 0:
        return Trained(model.eval(), Curve())
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
    now: Model = model if ema is None else ema.module
    training = _Training(model, optimizer, now, generator, device, best=now)
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        training.restore(state)
        progress(training.step, total)
    scheduler.step_update(training.step)
    for epoch in range(training.epoch, schedule.epochs):
        training.begin(epoch)
        for batch in batches(epoch, training.step - epoch * steps_per_epoch):
            with device.autocast():
                loss = loss_of(model, device.move(batch))
            value = loss.item()
            if not math.isfinite(value):
                raise BuildError(f"training diverged at step {training.step} of {total}: try a smaller learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_grad)
            optimizer.step()
            training.step += 1
            training.loss_sum += value
            scheduler.step_update(training.step)
            if ema is not None:
                ema.update(model, step=training.step)
            progress(training.step, total)
            if checkpoint is not None and checkpoint.due:
                checkpoint.save(training.state(), training.step, total)
        training.losses.append(training.loss_sum / steps_per_epoch)
        training.loss_sum = 0.0
        if judge is not None:
            training.found.append(judge(now.eval()))
            if training.found[-1] < training.least:
                training.least, training.best = training.found[-1], copy.deepcopy(now)
    training.epoch = schedule.epochs
    if checkpoint is not None:  # what its job does with the model may take minutes as well
        checkpoint.save(training.state(), training.step, total)
    kept = now if judge is None else training.best
    return Trained(kept.cpu().eval(), Curve(tuple(training.losses), tuple(training.found)))


@dataclass
class _Training(Generic[Model]):
    """All that changes while a model trains.

    Attributes:
        now: what would be kept now: the model, or its moving average.
        generator: what batches are drawn from.
        best: what a judge has liked best so far.
        least: its loss.
        epoch: the epoch that runs.
        drawn: the generator's state at its beginning.
        step: steps done in all epochs.
        loss_sum: of the batches of the epoch that runs.
        losses: mean loss of each epoch that is over.
        found: what the judge found after each.
    """

    model: Model
    optimizer: Any
    now: Model
    generator: torch.Generator
    device: TorchDevice
    best: Model
    least: float = math.inf
    epoch: int = 0
    drawn: torch.Tensor | None = None
    step: int = 0
    loss_sum: float = 0.0
    losses: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)

    def begin(self, epoch: int) -> None:
        """An epoch begins."""
        self.epoch, self.drawn = epoch, self.generator.get_state()
        self.model.train()

    def state(self) -> State:
        """A view of everything that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "now": None if self.now is self.model else self.now.state_dict(),
            "best": None if self.best is self.now else self.best.state_dict(),
            "least": self.least,
            "epoch": self.epoch,
            "drawn": self.drawn,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "losses": self.losses,
            "found": self.found,
            "random": self.device.random_states(),
        }

    def restore(self, state: State) -> None:
        """Become what `state` was taken from."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["now"] is not None:
            self.now.load_state_dict(state["now"])
        if state["best"] is not None:
            self.best = copy.deepcopy(self.now)
            self.best.load_state_dict(state["best"])
        self.least, self.epoch, self.step = state["least"], state["epoch"], state["step"]
        self.loss_sum, self.losses, self.found = state["loss_sum"], state["losses"], state["found"]
        self.generator.set_state(state["drawn"])
        self.device.restore_random(state["random"])
