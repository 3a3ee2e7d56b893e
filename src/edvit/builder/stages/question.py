"""The part of stage `base` that asks a base model what it knows, before it is taken as given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.images import ImageSet
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress, torch_threads
from edvit.builder.models import question
from edvit.builder.models.family import Classifier
from edvit.builder.stages.data import Data
from edvit.builder.stages.source import spread
from edvit.builder.train.base import logits_of
from edvit.builder.train.device import TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import WeightsError
from edvit.inputs.preprocess import Preprocessing
from edvit.shape.any import AnyArchitecture

QUESTIONED = 512
"""Images that a base model is asked on before it is taken as given, at most."""
STATISTICS = (
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)
"""Means and deviations that Vision Transformers are trained with."""


@dataclass(frozen=True)
class QuestionBase(Resumable):
    """Asks a base model that is taken as given what it knows, on labelled images.

    Attributes:
        architecture: the model's.
        weights: SHA-256 of its weights.
        head: as in `TrainBase`.
        images: validation images, and training images where these are few.
        classes: their names.
        preprocessing: how images reach the model.
        statistics: what mean and deviation were taken from, for messages.
        order: what names the outputs of the head, likewise; None: nothing does.
        taken: which weights of several these are, likewise; None: the checkpoint holds no others.
        accuracy: that the checkpoint says of itself; None: it says nothing.
        other_names: what it says of its head where that names none of the classes, for messages.
        model: the model.
        device: what runs it.
        threads: of PyTorch.
    """

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("timm", "torch")

    architecture: AnyArchitecture
    weights: str | None
    head: tuple[int, ...] | None
    images: ImageSet
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: float | None
    statistics: str = unkeyed()
    order: str | None = unkeyed()
    taken: str | None = unkeyed()
    other_names: str | None = unkeyed()
    model: Classifier = unkeyed()
    device: TorchDevice = unkeyed()
    threads: int = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        labels = self.images.labels
        with torch_threads(self.threads):
            predicted = self._predicted(self.model, self.preprocessing, Checkpoint.part_of(resume, "given"))
            found = [
                (float((other == labels).mean()), what)
                for what, other in self._alternatives(predicted, resume)
                if question.better(predicted, other, labels)
            ]
        right = float((predicted == labels).mean())
        weights = "these weights" if self.taken is None else f"the weights of {self.taken},"
        scores = f"{self.architecture.name} with {weights} gets {right:.1%} of {len(labels)} images right"
        if found:
            best, what = max(found)
            raise WeightsError(f"{scores}, and {best:.1%} {what}")
        if question.near_chance(predicted, labels, len(self.classes)):
            raise WeightsError(
                f"{scores}, and chance is {1 / len(self.classes):.1%}: "
                f"{self.other_names or 'the weights do not know these classes'}; check the weights and the data, or "
                "train the model on the data with --base-epochs"
            )
        if self.accuracy is not None and right < self.accuracy - question.CLAIMED:
            raise WeightsError(
                f"{scores}, and its checkpoint says {self.accuracy:.1%}: the data are others, or prepared in another "
                "way; check them, or train the model on them with --base-epochs"
            )
        return {"accuracy": right}

    def _predicted(self, model: Classifier, how: Preprocessing, checkpoint: Checkpoint | None) -> npt.NDArray[np.int64]:
        extractor = FeatureExtractor(model, how.mean, how.std)
        logits = logits_of(extractor, self.images, device=self.device, checkpoint=checkpoint)
        labels: npt.NDArray[np.int64] = logits.argmax(dim=1).numpy()
        return labels

    def _alternatives(
        self, predicted: npt.NDArray[np.int64], resume: Checkpoint | None
    ) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """What else the weights may have been trained with, in words, and what the model then predicts."""
        how = self.preprocessing
        order = question.other_order(predicted, self.images.labels, len(self.classes))
        wrong = "" if self.order is None else f"{self.order} names them otherwise; "
        if order is not None and (order[predicted] == self.images.labels).mean() >= question.EXPLAINED:
            yield (
                (
                    "if the outputs of its head stand for other classes: "
                    f"{question.describe_order(order, self.classes, self.head)}; {wrong}give --class-names FILE with "
                    "the class of each"
                ),
                order[predicted],
            )
        if getattr(self.model, "global_pool", None) == "token":
            pooled = copy.copy(self.model)
            pooled.global_pool = "avg"
            yield (
                "if its tokens are pooled by their mean: it was trained so; give --pool avg",
                self._predicted(pooled, how, Checkpoint.part_of(resume, "pooled")),
            )
        if how.channels == 3 and isinstance(self.model, VisionTransformer):
            turned = copy.deepcopy(self.model)
            weight = turned.patch_embed.proj.weight
            weight.data = weight.data.flip(1)
            yield (
                (
                    "if its images had their channels in the other order, with blue first, as OpenCV reads them; save "
                    "the weights with flip(1) of their patch_embed.proj.weight (docs/models.md has the line)"
                ),
                self._predicted(turned, how, Checkpoint.part_of(resume, "turned")),
            )
        for number, known in enumerate(STATISTICS):
            mean, std = (spread(values, how.channels) for values in known)
            if (mean, std) != (how.mean, how.std):
                numbers = [" ".join(f"{value:g}" for value in values) for values in (mean, std)]
                yield (
                    (
                        f"with another mean and deviation than those of {self.statistics}; give --mean {numbers[0]} "
                        f"--std {numbers[1]}"
                    ),
                    self._predicted(
                        self.model,
                        how.model_copy(update={"mean": mean, "std": std}),
                        Checkpoint.part_of(resume, f"statistics-{number}"),
                    ),
                )


def questioned(data: Data) -> ImageSet:
    """Validation images and, where they are fewer than `QUESTIONED`, training images, spread evenly."""
    validation, train = data.validation, data.train
    rows = _spread(validation.rows, QUESTIONED)
    return replace(validation, rows=np.concatenate([rows, _spread(train.rows, QUESTIONED - len(rows))]))


def _spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
