"""The base model: loaded, and fine-tuned where it does not know the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edvit.builder.images import ImageSet
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.models.family import Classifier
from edvit.builder.train.augment import Views
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.train.training import Schedule, Trained, train
from edvit.builder.vit.backbone import FeatureExtractor


@dataclass(frozen=True)
class BaseTraining:
    """How the base model is trained."""

    schedule: Schedule
    batch_size: int = 64
    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | None = None
    """What an image of each class counts; None: 1."""


def train_base(
    model: Classifier,
    views: Views,
    how: BaseTraining,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained[Classifier]:
    """Train a model on a new view of the training set each epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(views.images.labels)
    extractor = FeatureExtractor(model, mean, std)
    device.place(extractor)
    weights = None if how.class_weights is None else device.move(torch.tensor(how.class_weights))
    steps = max(1, len(views.images) // how.batch_size)

    def batches(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=generator).numpy()
        for step in range(first, steps):
            index = order[step * how.batch_size : (step + 1) * how.batch_size]
            yield extractor.normalise(views.batch(epoch, index, device)), labels[index]

    def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        return F.cross_entropy(module(images), targets, weight=weights, label_smoothing=how.label_smoothing)

    return train(
        model,
        batches,
        loss_of,
        steps_per_epoch=steps,
        schedule=how.schedule,
        generator=generator,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )


def features_of(
    extractor: FeatureExtractor,
    images: ImageSet,
    batch: int = 128,
    *,
    device: TorchDevice = CPU,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Features of a set, float32 `[n, dim]`, computed on the device, where the extractor then is.

    `checkpoint` keeps the features that are there already.
    """
    extractor.to(device.name)
    state = None if checkpoint is None else checkpoint.load()
    parts: list[Tensor] = [] if state is None else [state["features"]]
    done = sum(map(len, parts))
    with torch.inference_mode(), device.default():
        while done < len(images):
            pixels = images.pixels(slice(done, done + batch))
            parts.append(extractor(device.move(torch.from_numpy(pixels))).cpu())
            done += len(pixels)
            if checkpoint is not None and (checkpoint.due or done == len(images)):
                checkpoint.save({"features": torch.cat(parts)}, done, len(images))
        return torch.cat(parts)


def logits_of(
    extractor: FeatureExtractor, images: ImageSet, *, device: TorchDevice = CPU, checkpoint: Checkpoint | None = None
) -> Tensor:
    """Scores of a model's own head over a set, float32 `[n, classes]`; the rest as in `features_of`."""
    with torch.inference_mode():
        features = features_of(extractor, images, device=device, checkpoint=checkpoint)
        logits: Tensor = extractor.model.head(device.move(features))
        return logits.cpu()


def accuracy(logits: Tensor, images: ImageSet) -> float:
    """Share of images whose highest score is their label."""
    return float((logits.argmax(dim=1).numpy() == images.labels).mean())
