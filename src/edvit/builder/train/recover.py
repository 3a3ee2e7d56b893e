"""Recovery: training a pruned sub-model on its own classes and *other*, and as the base model's student.

Three losses, summed with the weights of `Recovery`:

- own: cross-entropy over the group's own classes and *other* (ED-ViT, arXiv 2410.11650), of images that are not mixed;
- logits: KL to the base model's softened scores over all classes (Hinton et al., arXiv 1503.02531);
- features: distance to the base model's feature, through a linear map that is dropped after training;
- streams: distance of the residual stream, token by token, to the base model's times `Q`, after the blocks that the
  teacher kept.

The paper has the first alone. A sub-model whose feature tells foreign classes apart as well gives the fusion more
to work with, which is what the next two are for. The last gives every block a target of its own: it is what makes a
short training worth most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.models.family import Classifier
from edvit.builder.subspace.rotation import of_vectors
from edvit.builder.train.augment import UNLABELLED, Views
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.train.teacher import TeacherView
from edvit.builder.train.training import Optimizer, Schedule, Trained, train
from edvit.builder.vit.backbone import FeatureExtractor


@dataclass(frozen=True)
class Recovery:
    """How a sub-model is trained after pruning."""

    schedule: Schedule
    optimizer: Optimizer = "nadamuon"
    batch_size: int = 64
    own_weight: float = 0.5
    logits_weight: float = 1.0
    features_weight: float = 1.0
    streams_weight: float = 1.0
    temperature: float = 2.0
    label_smoothing: float = 0.1


class Student(nn.Module):
    """A sub-model with the heads that only its training needs.

    `extractor.model.head` scores all classes; `own` scores the own classes and *other*; `to_teacher` maps the
    feature to the base model's.
    """

    def __init__(
        self, extractor: FeatureExtractor, classes: tuple[int, ...], rotation: Tensor, blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.extractor, self.blocks = extractor, tuple(blocks)
        head = extractor.model.head
        self.own = nn.Linear(head.in_features, len(classes) + 1)
        to_teacher = of_vectors(rotation, head.in_features // rotation.shape[1])
        self.to_teacher = nn.Linear(head.in_features, len(to_teacher))
        foreign = np.setdiff1d(np.arange(head.out_features), classes)
        with torch.no_grad():
            self.to_teacher.weight.copy_(to_teacher)
            self.to_teacher.bias.zero_()
            self.own.weight[:-1] = head.weight[list(classes)]
            self.own.bias[:-1] = head.bias[list(classes)]
            if len(foreign):
                self.own.weight[-1] = head.weight[foreign].mean(dim=0)
                self.own.bias[-1] = head.bias[foreign].mean()

    def forward(self, images: Tensor) -> StudentOutput:
        """Images on a scale of 0 to 255."""
        feature, streams = self.extractor.follow(images, self.blocks)
        return StudentOutput(self.extractor.model.head(feature), self.own(feature), self.to_teacher(feature), streams)


@dataclass(frozen=True)
class StudentOutput:
    """What a student says of a batch."""

    scores: Tensor
    """`[batch, classes]`"""
    own: Tensor
    """`[batch, own classes + 1]`, *other* last."""
    feature: Tensor
    """`[batch, teacher's dim]`, a guess at the teacher's."""
    streams: list[Tensor]
    """After each block that is followed, `[batch, tokens, dim]`."""


@dataclass(frozen=True)
class Lesson:
    """One batch."""

    images: Tensor
    own_labels: Tensor
    teacher_logits: Tensor
    teacher_features: Tensor
    teacher_streams: Tensor | None
    """`[batch, blocks, tokens, teacher's dim]`, float16."""


def recover(
    model: Classifier,
    classes: tuple[int, ...],
    views: Views,
    teacher: Sequence[TeacherView],
    how: Recovery,
    *,
    rotation: Tensor,
    blocks: Sequence[int] = (),
    follow: Callable[[Tensor], Tensor] | None = None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained[Classifier]:
    """Train a pruned model; its head scores all classes, as the base model's does.

    Args:
        model: pruned, with a head over all classes.
        classes: the class group.
        views: of the training set; epoch e sees view e modulo the number of views the teacher has seen.
        teacher: the base model's outputs, view by view.
        rotation: `Q`, `[base dim, dim]`: the stream, and each vector of the feature, stand in for the base's times `Q`.
        blocks: whose outputs the teacher's streams are.
        follow: the teacher's streams on a batch, as `teacher.streams_of` gives them, for views whose streams were not
            kept; None: without streams a view teaches without them.
        mean: per channel, on a scale of 0 to 1.
        std: per channel, on a scale of 0 to 1.
        device: where it trains.
        checkpoint: as for `train`.
    """
    torch.manual_seed(seed)
    # An order of each sub-model's own, so that they do not all learn the same images last.
    order_seed = int(np.random.SeedSequence((seed, *classes)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(order_seed)
    student = Student(FeatureExtractor(model, mean, std), classes, rotation, blocks)
    steps = max(1, len(views.images) // how.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Lesson]:
        view = epoch % len(teacher)
        outputs, own_labels = teacher[view], own_or_other(views.labels(view), classes)
        order = torch.randperm(len(views.images), generator=generator).numpy()
        for step in range(first, steps):
            index = order[step * how.batch_size : (step + 1) * how.batch_size]
            images = views.batch(view, index, device)
            streams = None if outputs.streams is None else torch.from_numpy(outputs.streams[index])
            if streams is None and follow is not None:
                streams = follow(images)
            yield Lesson(
                images,
                own_labels[index],
                torch.from_numpy(outputs.logits[index]),
                torch.from_numpy(outputs.features[index]),
                streams,
            )

    def loss_of(module: nn.Module, lesson: Lesson) -> Tensor:
        said: StudentOutput = module(lesson.images)
        loss = how.own_weight * label_loss(said.own, lesson.own_labels, how.label_smoothing)
        loss = loss + how.logits_weight * soft_loss(said.scores, lesson.teacher_logits, how.temperature)
        shape = lesson.teacher_features.shape[-1:]
        target = F.layer_norm(lesson.teacher_features, shape)
        loss = loss + how.features_weight * F.mse_loss(F.layer_norm(said.feature, shape), target)
        if lesson.teacher_streams is not None:
            streams = torch.stack(said.streams, dim=1)
            target = lesson.teacher_streams.float() @ rotation.to(streams.device)
            loss = loss + how.streams_weight * stream_loss(streams.float(), target)
        return loss

    trained = train(
        student,
        batches,
        loss_of,
        steps_per_epoch=steps,
        schedule=how.schedule,
        generator=generator,
        opt=how.optimizer,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(trained.model.extractor.model, trained.curve)


def label_loss(scores: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of `[batch, classes]`, summed over images that have a label, over the number of all images.

    Args:
        weights: of each class, float32 `[classes]`; None: 1.
    """
    total = F.cross_entropy(
        scores, labels, weight=weights, label_smoothing=smoothing, reduction="sum", ignore_index=UNLABELLED
    )
    return total / len(scores)


def soft_loss(scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch; both `[batch, classes]`."""
    student = F.log_softmax(scores / temperature, dim=-1)
    teacher = F.log_softmax(teacher_scores / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def stream_loss(streams: Tensor, teacher_streams: Tensor) -> Tensor:
    """Squared distance of each token's stream relative to the teacher's squared length, mean over tokens.

    Relative, because what reads the stream normalises it first. Both `[batch, blocks, tokens, dim]`.
    """
    distance = (streams - teacher_streams).square().sum(dim=-1)
    return (distance / teacher_streams.square().sum(dim=-1).clamp_min(1e-6)).mean()


def own_or_other(labels: npt.NDArray[np.int64], classes: tuple[int, ...]) -> Tensor:
    """Labels within the group, `len(classes)` for *other*; int64 `[n]`. `UNLABELLED` stays."""
    lookup = np.full(max(int(labels.max(initial=0)), *classes) + 1, len(classes), dtype=np.int64)
    lookup[list(classes)] = np.arange(len(classes))
    return torch.from_numpy(np.where(labels == UNLABELLED, UNLABELLED, lookup[np.maximum(labels, 0)]))
