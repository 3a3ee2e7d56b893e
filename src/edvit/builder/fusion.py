"""Fusion: a tower-shaped MLP from all sub-models' features to the scores over all classes.

It is trained with features dropped at random and a learned stand-in in their place, so that an answer without one
device is still an answer. Sub-models are frozen while it trains (ED-ViT, arXiv 2410.11650).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edvit.builder.recover import soft_loss
from edvit.builder.training import Schedule, train


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
        self.tower = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, classes))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Scores `[batch, classes]`.

        Args:
            features: float32 `[batch, sum of dims]`; what stands where nothing is present does not matter.
            present: float32 `[batch, sub-models]`, 1 where the feature is there, else 0.
        """
        there = (present @ self.expand) > 0.5
        scores: Tensor = self.tower(torch.where(there, (features - self.mean) / self.std, self.stand_in))
        return scores


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


def train_fusion(
    features: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    dims: Sequence[int],
    hidden: int,
    how: FusionTraining,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fusion:
    """Train a fusion on frozen features.

    Args:
        features: float32 `[samples, sum of dims]`.
        labels: int64 `[samples]`.
        teacher_logits: float32 `[samples, classes]`, the base model's.
        dims: feature length of each sub-model.
        hidden: width of the hidden layer.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    fusion = Fusion(dims, hidden, teacher_logits.shape[1])
    fusion.mean.copy_(features.mean(dim=0))
    fusion.std.copy_(features.std(dim=0).clamp_min(1e-4))
    steps = max(1, len(features) // how.batch_size)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(features), generator=generator)
        for step in range(steps):
            index = order[step * how.batch_size : (step + 1) * how.batch_size]
            yield index, draw_present(len(index), len(dims), how.drop, generator)

    def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        index, present = batch
        scores = module(features[index], present)
        loss = F.cross_entropy(scores, labels[index], label_smoothing=how.label_smoothing)
        return loss + how.logits_weight * soft_loss(scores, teacher_logits[index], how.temperature)

    trained = train(fusion, batches, loss_of, steps_per_epoch=steps, schedule=how.schedule, progress=progress)
    if not isinstance(trained, Fusion):
        raise TypeError("training returned another module")
    return trained


def draw_present(batch: int, submodels: int, drop: float, generator: torch.Generator) -> Tensor:
    """0/1 float32 `[batch, submodels]`: each is absent with probability `drop`, but never all of them."""
    present = (torch.rand(batch, submodels, generator=generator) >= drop).float()
    spared = torch.randint(submodels, (batch,), generator=generator)
    empty = present.sum(dim=1) == 0
    present[empty, spared[empty]] = 1.0
    return present
