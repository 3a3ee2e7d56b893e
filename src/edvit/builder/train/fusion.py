"""Fusion: a tower-shaped MLP from all sub-models' features to the scores over all classes.

It starts as the mean of the sub-models' own scores and learns what to add, for as long as held-out data gains: features
of images that the sub-models were trained on look better than they are. It is trained with features dropped at random
and a learned stand-in in their place, so that an answer without one device is still an answer. Sub-models are frozen
while it trains (ED-ViT, arXiv 2410.11650).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.train.recover import label_loss, soft_loss
from edvit.builder.train.training import Schedule, Trained, train


class Fusion(nn.Module):
    """Concatenated features and who is present -> scores.

    Args:
        dims: feature length of each sub-model, in the order of concatenation.
        hidden: width of the hidden layer.
        classes: number of scores.
    """

    expand: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, dims: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        width = sum(dims)
        owner = torch.repeat_interleave(torch.arange(len(dims)), torch.tensor(dims))
        self.register_buffer("expand", F.one_hot(owner, len(dims)).T.float())
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.stand_in = nn.Parameter(torch.zeros(width))
        self.mix = nn.Linear(width, classes)
        self.tower = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, classes))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Scores `[batch, classes]`.

        Args:
            features: float32 `[batch, sum of dims]`; what stands where nothing is present does not matter.
            present: float32 `[batch, sub-models]`, 1 where the feature is there, else 0.
        """
        there = (present @ self.expand) > 0.5
        normal = torch.where(there, (features - self.mean) / self.std, self.stand_in)
        scores: Tensor = self.mix(normal) + self.tower(normal)
        return scores

    @torch.no_grad()
    def start(self, features: Tensor, heads: Sequence[nn.Linear]) -> None:
        """Become the mean of the heads' scores.

        Args:
            features: float32 `[samples, sum of dims]`, to take mean and deviation from.
            heads: each sub-model's, over all classes.
        """
        self.mean.copy_(features.mean(dim=0))
        self.std.copy_(features.std(dim=0).clamp_min(1e-4))
        weight = torch.cat([head.weight for head in heads], dim=1) / len(heads)
        bias = torch.stack([head.bias for head in heads]).mean(dim=0)
        self.mix.weight.copy_(weight * self.std)
        self.mix.bias.copy_(bias + weight @ self.mean)
        for parameter in self.tower[-1].parameters():
            parameter.zero_()

    @torch.no_grad()
    def cool(self, temperature: float) -> None:
        """Divide the scores by a temperature from now on."""
        for layer in (self.mix, self.tower[-1]):
            for parameter in layer.parameters():
                parameter.div_(temperature)


@dataclass(frozen=True)
class Samples:
    """What a fusion learns from, or is held to.

    Attributes:
        features: float32 `[samples, sum of dims]`.
        labels: int64 `[samples]`; `augment.UNLABELLED` where there is none.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FusionTraining:
    """How the fusion is trained."""

    schedule: Schedule
    batch_size: int = 128
    drop: float = 0.15
    """Probability with which each sub-model's feature is taken away from a training sample."""
    logits_weight: float = 1.0
    temperature: float = 2.0
    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | None = None
    """What an image of each class counts; None: 1."""


def train_fusion(
    seen: Samples,
    teacher_logits: Tensor,
    held_out: Samples,
    *,
    heads: Sequence[nn.Linear],
    hidden: int,
    how: FusionTraining,
    seed: int,
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained[Fusion]:
    """Train a fusion on frozen features; its curve has its loss on what is held out.

    Args:
        seen: of the training set.
        teacher_logits: float32 `[samples, classes]`, the base model's for what is seen.
        held_out: of images that nothing was trained on; decide after which epoch to stop.
        heads: each sub-model's, over all classes.
        hidden: width of the hidden layer.
        device: where it trains, in float32.
        checkpoint: as for `train`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    fusion = Fusion([head.in_features for head in heads], hidden, teacher_logits.shape[1])
    fusion.start(seen.features, heads)
    seen, held_out, teacher_logits = device.move((seen, held_out, teacher_logits))
    features, labels = seen.features, seen.labels
    weights = None if how.class_weights is None else device.move(torch.tensor(how.class_weights))
    steps = max(1, len(features) // how.batch_size)

    def batches(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(features), generator=generator)
        for step in range(steps):
            index = order[step * how.batch_size : (step + 1) * how.batch_size]
            present = draw_present(len(index), len(heads), how.drop, generator)
            if step >= first:
                yield index, present

    def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        index, present = batch
        scores = module(features[index], present)
        loss = label_loss(scores, labels[index], how.label_smoothing, weights)
        return loss + how.logits_weight * soft_loss(scores, teacher_logits[index], how.temperature)

    @torch.inference_mode()
    def judge(module: nn.Module) -> float:
        present = torch.ones(len(held_out.labels), len(heads), device=device.name)
        return F.cross_entropy(module(held_out.features, present), held_out.labels, weight=weights).item()

    return train(
        fusion,
        batches,
        loss_of,
        steps_per_epoch=steps,
        schedule=how.schedule,
        generator=generator,
        judge=judge,
        device=device.exact,
        checkpoint=checkpoint,
        progress=progress,
    )


def draw_present(batch: int, submodels: int, drop: float, generator: torch.Generator) -> Tensor:
    """0/1 float32 `[batch, submodels]`: each is absent with probability `drop`, but never all of them."""
    present = (torch.rand(batch, submodels, generator=generator) >= drop).float()
    spared = torch.randint(submodels, (batch,), generator=generator)
    empty = present.sum(dim=1) == 0
    present[empty, spared[empty]] = 1.0
    return present
