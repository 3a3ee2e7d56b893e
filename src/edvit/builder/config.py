"""What a build is asked to do, with every default resolved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from edvit.errors import ConfigError
from edvit.fleet import Fleet, first_problem
from edvit.shape.conv import is_convnet
from edvit.shape.vit import AttentionMode

T = TypeVar("T")
Pruner = Literal["subspace", "channels"]
ChannelCriterion = Literal["fisher-kl", "kl", "magnitude", "random", "apoz"]
Step = Literal["rotation", "fisher", "factors", "readers", "writers", "correction"]
Fit = Literal["uniform", "fitted"]
Precision = Literal["fp32", "int8"]
DeviceKind = Literal["cpu", "cuda"]
Augment = Literal["natural", "glyphs", "spectrograms", "none"]

STAGES = (
    "data", "base", "teacher", "statistics", "scores", "prune", "recover", "export", "quantise", "fuse", "test",
)  # fmt: skip
"""Names that --force takes, in the order in which they run."""

LONG_RECOVERY = 16
"""Epochs from which sub-models learn more from images that are changed so much that only the base model can say what
they show."""
RECOVER_LR: dict[Pruner, float] = {"subspace": 1e-3, "channels": 5e-3}


class BuildConfig(BaseModel):
    """Settings of a build. What is left None is resolved from the data and the model, and recorded resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = "digits"
    """Data spec, see `edvit.inputs.datasets`."""
    data_root: Path | None = None
    model: str | None = None
    """timm name; for digits `vit_digits_patch4_8`."""
    weights: Path | None = None
    image_size: int | None = Field(default=None, gt=0)
    channels: Literal[1, 3] | None = None
    seconds: float | None = Field(default=None, gt=0)
    """Length of each sound, its middle; None is the training set's median length."""
    sample_rate: int | None = Field(default=None, gt=0)
    """Samples a second of sounds, Hz; None is 16,000."""
    mels: int | None = Field(default=None, gt=0)
    """Mel bands of sounds; None is 64."""
    fleet: Fleet
    groups: int | None = Field(default=None, ge=1)
    """Class groups, N; None is one per device, at most one per class."""
    keep: str | None = None
    """Keep ratio `s` to start from, such as `2/12`; None is about a third."""
    attention: AttentionMode = "dims"
    prune: Pruner | None = None
    """`subspace` rotates the residual stream and refits (docs/guide/subspace.md); `channels` is the paper's. None:
    `subspace` for ViTs, `channels` for convolutional networks."""
    criterion: ChannelCriterion | None = None
    """How `channels` scores components. None: `fisher-kl` for ViTs; convolutional networks have `apoz` alone."""
    without: tuple[Step, ...] = ()
    """Steps of `subspace` to leave out, to see what each is worth."""
    widths: Fit | None = None
    """`uniform`: the same in every block; `fitted`: for each group where its output loses least, at no larger cost.
    None is `fitted` where that can be: by subspace, with all heads. Of a convolutional network, `fitted` is one
    threshold for all filters."""
    fisher: float = Field(default=0.3, gt=0)
    """Share of the identity in the Fisher weight of `subspace`."""
    foreign: float = Field(default=1 / 3, ge=0)
    """Weight of all foreign classes together in `subspace`, relative to the own."""
    calibration: int = Field(default=300, ge=1)
    """Images of its own classes that each group is pruned on."""
    seed: int = Field(default=0, ge=0)
    validation: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training data that is held out for validation, where the data set's authors have not chosen it."""
    augment: Augment | None = None
    base_epochs: int | None = Field(default=None, ge=0)
    """None: 0 where the weights know the classes, `stages.base.fine_tune_epochs` to fine-tune, 60 without weights."""
    recover_epochs: int = Field(default=20, ge=0)
    """0 keeps sub-models as pruned."""
    views: int | None = Field(default=None, ge=1)
    """Augmented views of the training set that the base model is run on; None is one per epoch, at most 20."""
    mix: float | None = Field(default=None, ge=0, le=1)
    """Share of the images of each view that are mixed with another one (mix-up, CutMix); the base model says what they
    are. None is a half from `LONG_RECOVERY` epochs on, and 0 below."""
    strength: float | None = Field(default=None, ge=0)
    """Strength of the augmentation of views, relative to that of the base's training. None is 1.75 from
    `LONG_RECOVERY` epochs on, and 1 below."""
    precision: Precision = "fp32"
    """Precision of the weights in the sub-models' files; `int8` is ONNX Runtime's dynamic quantisation of matrices."""
    batch_size: int = Field(default=64, ge=2)
    base_lr: float | None = Field(default=None, gt=0)
    recover_lr: float | None = Field(default=None, gt=0)
    """None: `RECOVER_LR` of the pruner. What it left is worth more by subspace, and a large step undoes it."""
    baseline: bool = True
    """Also build one sub-model for all classes at the same width (N = 1), to see what splitting buys."""
    workers: int = Field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))), ge=1)
    """Sub-models that are trained at a time, one thread each. Does not change the result."""
    device: DeviceKind = "cpu"
    """What trains and runs models; `cuda`: all GPUs that PyTorch sees."""
    amp: bool | None = None
    """Train with matrix products in bfloat16 (automatic mixed precision), weights in float32. None: on GPUs, and on
    CPUs that have instructions for it."""
    memory_limit_mb: int | None = Field(default=None, gt=0)
    """Memory for scoring a ViT by `channels`, all `workers` together; None: as 32 images at a time need."""
    ray: str | None = None
    """Address of a Ray cluster to train them on, in place of `workers`; see `edvit.builder.jobs.ray_cluster`."""

    @field_validator("prune")
    @classmethod
    def _prunes(cls, prune: Pruner | None, info: ValidationInfo) -> Pruner | None:
        if prune == "subspace" and is_convnet(info.data.get("model")):
            raise ValueError(f"{info.data['model']} has no residual stream to rotate; it is pruned by channels")
        return prune

    @field_validator("criterion")
    @classmethod
    def _scores(cls, criterion: ChannelCriterion | None, info: ValidationInfo) -> ChannelCriterion | None:
        if criterion is not None and (criterion == "apoz") != is_convnet(info.data.get("model")):
            raise ValueError("apoz is how filters of convolutional networks are scored, and these only so")
        if criterion is not None and not _by_channels(info.data):
            raise ValueError("only channels are scored; give --prune channels as well, or leave it out")
        return criterion

    @field_validator("without", "fisher", "foreign")
    @classmethod
    def _weighs(cls, value: T, info: ValidationInfo) -> T:
        if _by_channels(info.data):
            raise ValueError("goes with subspace pruning only, and this build prunes channels; leave it out")
        return value

    @field_validator("widths")
    @classmethod
    def _fits(cls, widths: Fit | None, info: ValidationInfo) -> Fit | None:
        of_vit = info.data.get("prune") != "channels" and info.data.get("attention") == "dims"
        if widths == "fitted" and not of_vit and not is_convnet(info.data.get("model")):
            raise ValueError("fitted goes with subspace pruning of head dimensions only")
        return widths

    @field_validator("memory_limit_mb")
    @classmethod
    def _bounds(cls, memory_limit_mb: int | None, info: ValidationInfo) -> int | None:
        if memory_limit_mb is not None and (not _by_channels(info.data) or is_convnet(info.data.get("model"))):
            raise ValueError("only scoring a ViT by channels is bounded by it; leave it out, or give --prune channels")
        return memory_limit_mb

    @field_validator("ray")
    @classmethod
    def _runs(cls, ray: str | None, info: ValidationInfo) -> str | None:
        if ray is not None and info.data.get("device") == "cuda":
            raise ValueError("a Ray cluster's tasks run on CPU cores; give either --ray or --device cuda")
        return ray

    @property
    def resolved_groups(self) -> int:
        return self.groups or len(self.fleet.devices)

    @property
    def rotated(self) -> bool:
        """Whether sub-models are of the rotated form of the base model."""
        return self.resolved_prune == "subspace"

    @property
    def resolved_prune(self) -> Pruner:
        return "channels" if _by_channels({"prune": self.prune, "model": self.model}) else "subspace"

    @property
    def resolved_criterion(self) -> ChannelCriterion:
        return self.criterion or ("apoz" if is_convnet(self.model) else "fisher-kl")

    @property
    def resolved_widths(self) -> Fit:
        return self.widths or ("fitted" if self.rotated and self.attention == "dims" else "uniform")

    @property
    def resolved_recover_lr(self) -> float:
        return self.recover_lr or RECOVER_LR[self.resolved_prune]

    @property
    def training_precision(self) -> dict[str, bool]:
        """What of it a stage depends on: `amp` where it was asked for.

        Where it follows from the machine it is one of the machine's roundings, as the number of threads is, and no
        reason to train again.
        """
        return {} if self.amp is None else {"amp": self.amp}

    @property
    def resolved_views(self) -> int:
        return self.views or max(1, min(20, self.recover_epochs))

    @property
    def resolved_mix(self) -> float:
        return self.mix if self.mix is not None else 0.5 if self.recover_epochs >= LONG_RECOVERY else 0.0

    @property
    def resolved_strength(self) -> float:
        return self.strength if self.strength is not None else 1.75 if self.recover_epochs >= LONG_RECOVERY else 1.0


def _by_channels(settings: Mapping[str, Any]) -> bool:
    """Whether channels are pruned: as asked for, or as the kind of model has it."""
    pruner = settings.get("prune")
    return pruner == "channels" or (pruner is None and is_convnet(settings.get("model")))


def make_config(**settings: Any) -> BuildConfig:
    """A `BuildConfig` from keyword arguments.

    Raises:
        ConfigError: a setting is unknown or out of range; the message names it.
    """
    try:
        return BuildConfig(**settings)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
