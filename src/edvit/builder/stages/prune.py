"""Stage `prune`: from the base model to one narrow sub-model for each class group, by subspace or by channels.

Either way a pruned model comes with its rotation `Q` `[base dim, dim]`: its residual stream stands in for the base's
times `Q`. By channels `Q` is a selection of columns of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file
from torch import Tensor

from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Note
from edvit.builder.models import checkpoint
from edvit.builder.models.family import AnyWidths, Classifier, Kept
from edvit.builder.train.base import accuracy, logits_of
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.inputs.preprocess import Preprocessing

ROTATION = "rotation.safetensors"


@dataclass(frozen=True)
class Group:
    """What one sub-model is to be.

    Attributes:
        classes: the class group.
        widths: what they are to be, or the budget that they are fitted to.
    """

    classes: tuple[int, ...]
    widths: AnyWidths


def load_rotation(pruned: Artifact) -> Tensor:
    """`Q` of a pruned model, float32 `[base dim, dim]`."""
    rotation: Tensor = load_file(pruned.folder / ROTATION)["rotation"]
    return rotation


def load_kept(pruned: Artifact) -> Kept:
    """What pruning left."""
    return Kept(**pruned.note["kept"])


def save_cut(folder: Path, model: Classifier, rotation: Tensor) -> None:
    """Write a pruned model and its rotation."""
    checkpoint.save_model(folder / checkpoint.WEIGHTS, model)
    save_file({"rotation": rotation.float().contiguous()}, folder / ROTATION)


def noted(
    model: Classifier,
    kept: Kept,
    *,
    preprocessing: Preprocessing,
    validation: ImageSet,
    device: TorchDevice = CPU,
    resume: Checkpoint | None = None,
) -> Note:
    """What is noted of a pruned model: its accuracy as it is, and what it kept."""
    extractor = FeatureExtractor(model, preprocessing.mean, preprocessing.std)
    logits = logits_of(extractor, validation, device=device, checkpoint=resume)
    return {"validation": accuracy(logits, validation), "kept": asdict(kept)}


def calibration_rows(train: ImageSet, classes: Sequence[int], count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` training images drawn evenly from these classes, or all there are, ascending; at least one of each."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(train.of_classes((label,))) for label in classes]
    # Every class's first image, then every class's second, ...
    turns = np.concatenate([np.arange(len(rows)) for rows in drawn])
    order = np.argsort(turns, kind="stable")[: max(count, len(classes))]
    return np.sort(np.concatenate(drawn)[order])
