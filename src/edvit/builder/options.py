"""What a user may ask of a plan and of a build: each option's name, type, bounds, default and help text, once.

`edvit plan`, `edvit build` and `edvit.build` all take these. The command line makes an option of each field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from cyclopts import Group, Parameter
from PIL import ImageColor
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from edvit.inputs.datasets import SPECS
from edvit.plan.cost import Precision
from edvit.shape.conv import is_convnet
from edvit.shape.image import ImageSize
from edvit.shape.vit import AttentionMode, Pool

T = TypeVar("T")
Pruner = Literal["subspace", "channels"]
ChannelCriterion = Literal["fisher-kl", "kl", "magnitude", "random", "apoz"]
Step = Literal["rotation", "fisher", "factors", "readers", "writers", "correction"]
Fit = Literal["uniform", "fitted"]
DeviceKind = Literal["cpu", "cuda"]
BadFiles = Literal["stop", "skip"]
Augment = Literal["natural", "glyphs", "spectrograms", "none"]

Stage = Literal[
    "data", "base", "teacher", "statistics", "scores", "prune", "recover", "export", "quantise", "fuse", "test"
]
"""Stages of a build, in the order in which they run: what --force takes."""

DATA_HELP = f"Data set: {', '.join(SPECS)}."
SPLIT_BY_HELP = (
    "What belongs together (a speaker, a camera, a patient), on one side of the cut into training, validation and, "
    "where the data have no splits, test: a regular expression over file names with one group, or a CSV file of "
    "name,group lines."
)
DATA_ROOT_HELP = "Folder with the files of a data set that has a name, such as cifar10."

COMMON = Parameter(group=Group.create_ordered("Common options"))
DATA = Parameter(group=Group.create_ordered("Data"))
MODEL = Parameter(group=Group.create_ordered("Model"))
FLEET = Parameter(group=Group.create_ordered("Fleet"))
PRUNING = Parameter(group=Group.create_ordered("Pruning"))
TRAINING = Parameter(group=Group.create_ordered("Training"))
MACHINE = Parameter(group=Group.create_ordered("Machine"))
"""Where `--help` shows an option."""


def _number(value: object) -> object:
    """A whole number that is written as text, as on the command line: pydantic does not read one where a choice is."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _image_size(value: object) -> object:
    """An image size that is written as text."""
    return ImageSize.parse(value) if isinstance(value, str) else value


def _colour(value: object) -> object:
    """`#rrggbb` of a colour's name or notation."""
    if not isinstance(value, str):
        return value
    try:
        red, green, blue = ImageColor.getrgb(value)[:3]
    except ValueError:
        raise ValueError(f"{value} is no colour; give a name such as white, or #rrggbb") from None
    return f"#{red:02x}{green:02x}{blue:02x}"


ImageSizeOption = Annotated[
    ImageSize | None,
    MODEL,
    Parameter(name="--img-size", n_tokens=1, accepts_keys=False),  # one word, and no option for each side
    BeforeValidator(_image_size),
]


def _by_channels(settings: Mapping[str, Any]) -> bool:
    """Whether channels are pruned: as asked for, or as the kind of model has it."""
    pruner = settings.get("prune")
    return pruner == "channels" or (pruner is None and is_convnet(settings.get("model")))


def _fine_tunes(settings: Mapping[str, Any]) -> bool:
    """Whether a base model that has weights may be trained."""
    has_weights = settings.get("weights") is not None or settings.get("pretrained")
    return bool(has_weights) and settings.get("base_epochs") != 0


class Need(NamedTuple):
    """What an option needs to have an effect."""

    met: Callable[[Mapping[str, Any]], bool]
    """Whether it has one, given the options before it (`NEEDS`) or what is known of the data (`NEEDS_OF_DATA`)."""
    otherwise: str
    """What is wrong where it has none, and what to do."""


_OF_SUBSPACES = "goes with subspace pruning only, and this build prunes channels; leave it out"

NEEDS: Mapping[str, Need] = {
    "data_root": Need(
        lambda given: (given.get("data") or "digits").partition(":")[0] not in ("digits", "imagefolder", "audiofolder"),
        "is for data sets that have a name, such as cifar10, and --data is none of these; leave it out",
    ),
    "attention": Need(
        lambda given: not is_convnet(given.get("model")),
        "the model is a convolutional network and has none; leave it out",
    ),
    "class_names": Need(
        lambda given: given.get("weights") is not None, "names the outputs of the head of --weights, which is not given"
    ),
    "criterion": Need(_by_channels, "only channels are scored; give --prune channels as well, or leave it out"),
    "without": Need(lambda given: not _by_channels(given), _OF_SUBSPACES),
    "fisher": Need(
        lambda given: not _by_channels(given) and not {"rotation", "fisher"} & set(given.get("without", ())),
        "goes with subspace pruning only, and with its steps rotation and fisher; leave it out",
    ),
    "foreign": Need(lambda given: not _by_channels(given), _OF_SUBSPACES),
    "calibration": Need(
        lambda given: given.get("criterion") not in ("magnitude", "random"),
        "--criterion magnitude and random look at no image; leave it out",
    ),
    "base_lr": Need(
        lambda given: given.get("base_epochs") != 0, "--base-epochs 0 does not train the base model; leave it out"
    ),
    "recover_lr": Need(
        lambda given: given.get("recover_epochs") != 0, "--recover-epochs 0 leaves sub-models as pruned; leave it out"
    ),
    "strength": Need(
        lambda given: given.get("augment") != "none", "--augment none leaves images as they are; leave one of them out"
    ),
    "batch_size": Need(
        lambda given: given.get("recover_epochs") != 0 or _fine_tunes(given),
        "neither a base model with weights nor a sub-model is trained; leave it out",
    ),
    "memory_limit_mb": Need(
        lambda given: _by_channels(given) and not is_convnet(given.get("model")),
        "only scoring a ViT by channels is bounded by it; leave it out, or give --prune channels",
    ),
}
"""What options need of others. An option that is given and would change nothing is refused."""

_OF_SOUNDS = Need(lambda data: data["sounds"], "is for sounds, and the data are images; leave it out")
_OF_CUTS = Need(
    lambda data: not data["validated"],
    "the data set has a validation split of its own, which is kept; leave it out",
)
NEEDS_OF_DATA: Mapping[str, Need] = {
    "background": Need(lambda data: not data["sounds"], "is for images, and the data are sounds; leave it out"),
    "seconds": _OF_SOUNDS,
    "sample_rate": _OF_SOUNDS,
    "mels": _OF_SOUNDS,
    "split_by": _OF_CUTS,
    "validation": _OF_CUTS,
}
"""What options need of the data: whether they are `sounds`, and whether their authors `validated` some of them."""


class PlanOptions(BaseModel):
    """Options that change a plan. What is left None is resolved from the data and the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[str | None, COMMON] = Field(default=None, description=DATA_HELP)
    model: Annotated[str | None, COMMON] = Field(
        default=None, description="timm model name, or a network of docs/models.md; default for digits: a small ViT."
    )
    weights: Annotated[Path | None, COMMON] = Field(
        default=None,
        description="Weights of the base model: a .safetensors, .pth or .pt file without code in it, a Hugging Face "
        "folder, or hf-hub:OWNER/NAME.",
    )
    keep: Annotated[str | None, COMMON] = Field(
        default=None,
        description="Keep ratio, the share of the base model's widths that a sub-model keeps, such as 2/12; default: "
        "about a third.",
    )
    precision: Annotated[Precision, COMMON] = Field(
        default="fp32",
        description="Precision of the weights in the sub-models' files; an int8 file is about 0.3 times as large as in "
        "fp32, an int4 file 0.15 times.",
    )
    data_root: Annotated[Path | None, DATA] = Field(default=None, description=DATA_ROOT_HELP)
    split_by: Annotated[str | None, DATA] = Field(default=None, description=SPLIT_BY_HELP)
    background: Annotated[str | None, DATA, BeforeValidator(_colour)] = Field(
        default=None,
        description="Colour that transparent images are put on, such as white or #c0c0c0; default: transparency is "
        "dropped, as timm and torchvision do.",
    )
    seconds: Annotated[float | None, DATA] = Field(
        default=None, gt=0, description="Length of each sound, its middle; default: the training set's median length."
    )
    sample_rate: Annotated[int | None, DATA] = Field(
        default=None, gt=0, description="Samples a second of each sound, Hz; default: what most files have."
    )
    mels: Annotated[int | None, DATA] = Field(default=None, gt=0, description="Mel bands of each sound; default: 64.")
    image_size: ImageSizeOption = Field(
        default=None,
        description="Pixels of each side of the model's input, or HEIGHTxWIDTH such as 96x160; default: the model's "
        "own.",
    )
    pretrained: Annotated[bool, MODEL, Parameter(negative="")] = Field(
        default=False, description="Start from the weights that timm has for --model, which are downloaded."
    )
    pool: Annotated[Pool | None, MODEL] = Field(
        default=None, description="How the model pools its tokens; default: as its config.json or its name says."
    )
    channels: Annotated[Literal[1, 3] | None, MODEL, BeforeValidator(_number)] = Field(
        default=None, description="1 (grey) or 3 (colour); default: what suits the data."
    )
    groups: Annotated[int | None, FLEET] = Field(
        default=None,
        ge=1,
        description="Class groups, one for each sub-model; default: one for each device, at most one for each class.",
    )
    attention: Annotated[AttentionMode, PRUNING] = Field(
        default="dims", description="Narrow every attention head, or drop whole heads."
    )
    prune: Annotated[Pruner | None, PRUNING] = Field(
        default=None,
        description="subspace rotates the residual stream, keeps the directions that a class group uses, and refits; "
        "channels scores and deletes channels, as the paper does. Default: subspace for ViTs, channels for "
        "convolutional networks.",
    )
    seed: Annotated[int, TRAINING] = Field(
        default=0, ge=0, description="Seed of the class groups, of all draws and of the training."
    )

    @field_validator("*")
    @classmethod
    def _changes_something(cls, value: T, info: ValidationInfo) -> T:
        need = NEEDS.get(info.field_name or "")
        if need is not None and value not in (None, ()) and not need.met(info.data):
            raise ValueError(need.otherwise)
        return value

    @field_validator("pretrained")
    @classmethod
    def _downloads(cls, pretrained: bool, info: ValidationInfo) -> bool:
        if pretrained and info.data.get("weights") is not None:
            raise ValueError("the base model starts from timm's weights or from --weights; give one of them")
        if pretrained and info.data.get("model") is None:
            raise ValueError("needs --model, the name that timm has the weights under")
        return pretrained

    @field_validator("precision")
    @classmethod
    def _stores(cls, precision: Precision, info: ValidationInfo) -> Precision:
        if precision != "fp32" and is_convnet(info.data.get("model")):
            raise ValueError(f"{info.data['model']} is made of convolutions, which stay in fp32; leave it out")
        return precision

    @field_validator("prune")
    @classmethod
    def _prunes(cls, prune: Pruner | None, info: ValidationInfo) -> Pruner | None:
        if prune == "subspace" and is_convnet(info.data.get("model")):
            raise ValueError(f"{info.data['model']} has no residual stream to rotate; it is pruned by channels")
        return prune

    @property
    def rotated(self) -> bool:
        """Whether sub-models are of the rotated form of the base model."""
        return self.resolved_prune == "subspace"

    @property
    def resolved_prune(self) -> Pruner:
        return "channels" if _by_channels({"prune": self.prune, "model": self.model}) else "subspace"

    def given(self) -> dict[str, Any]:
        """The options that were set, by the names of their fields; every other one has its default."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


UNRECORDED = frozenset({"workers", "ray", "memory_limit_mb", "checkpoint_every", "work_limit"})
"""Options that do not change what is built. A bundle does not record them, or its digest would depend on them."""


class BuildOptions(PlanOptions):
    """Options of a build. What is left None is resolved from the data and the model, and recorded resolved."""

    data: Annotated[str, COMMON] = Field(default="digits", description=DATA_HELP)
    recover_epochs: Annotated[int, COMMON] = Field(
        default=20, ge=0, description="Epochs of training each sub-model; 0 leaves it as pruned."
    )
    validation: Annotated[float, DATA] = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of the training data held out for validation, where the data set's authors chose none.",
    )
    unlabeled: Annotated[Path | None, DATA] = Field(
        default=None,
        description="Folder with images or sounds without labels; the base model names them, and sub-models learn from "
        "them as well.",
    )
    bad_files: Annotated[BadFiles, DATA] = Field(
        default="stop",
        description="What to do where files cannot be read: stop before any training and name them, or skip them.",
    )
    class_names: Annotated[Path | None, MODEL] = Field(
        default=None,
        description="File with the class of each output of the head of --weights, one a line; default: its "
        "config.json, or the order of the data's classes.",
    )
    mean: Annotated[tuple[float, ...] | None, MODEL, Parameter(consume_multiple=True, negative="")] = Field(
        default=None,
        min_length=1,
        description="Mean of the images that the base model learnt from, on a scale of 0 to 1, one or one a channel; "
        "default: that of its config.json, or of the model's name.",
    )
    std: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...] | None, MODEL, Parameter(consume_multiple=True, negative="")
    ] = Field(default=None, min_length=1, description="Their standard deviation, likewise.")
    criterion: Annotated[ChannelCriterion | None, PRUNING] = Field(
        default=None,
        description="How --prune channels scores components; default: fisher-kl for ViTs, apoz for convolutional "
        "networks.",
    )
    without: Annotated[tuple[Step, ...], PRUNING] = Field(
        default=(), description="A step of --prune subspace to leave out; may be given again."
    )
    widths: Annotated[Fit | None, PRUNING] = Field(
        default=None,
        description="uniform: the same widths in every block; fitted: for each class group where its output loses "
        "least, at no larger cost. Default: fitted by --prune subspace with --attention dims, otherwise uniform.",
    )
    fisher: Annotated[float, PRUNING] = Field(
        default=0.3, gt=0, description="Share of the identity in the Fisher weight of --prune subspace."
    )
    foreign: Annotated[float, PRUNING, Parameter(show_default=lambda value: f"{value:.3g}")] = Field(
        default=1 / 3,
        ge=0,
        description="Weight in --prune subspace of all foreign classes together; that of the own classes is 1.",
    )
    calibration: Annotated[int, PRUNING] = Field(
        default=300, ge=1, description="Images of its own classes that each sub-model is pruned on."
    )
    base_epochs: Annotated[int | None, TRAINING] = Field(
        default=None,
        ge=0,
        description="Epochs of training the base model; default: 0 where the weights know the classes, as the "
        "number of images asks for to fine-tune, 60 without weights.",
    )
    base_lr: Annotated[float | None, TRAINING] = Field(
        default=None,
        gt=0,
        description="Peak learning rate of the base model; default: 1e-3 from scratch, 5e-4 to fine-tune.",
    )
    recover_lr: Annotated[float | None, TRAINING] = Field(
        default=None, gt=0, description="Peak learning rate of recovery; default: 1e-3 by subspace, 5e-3 by channels."
    )
    augment: Annotated[Augment | None, TRAINING] = Field(
        default=None, description="How training images are changed at random; default: what suits the data."
    )
    views: Annotated[int | None, TRAINING] = Field(
        default=None,
        ge=1,
        description="Augmented views of the training set that the base model teaches on; default: one for each epoch, "
        "at most 20.",
    )
    mix: Annotated[float | None, TRAINING] = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the views' images that are mixed with another image (mix-up, CutMix); default: 0.5 from "
        "16 epochs of recovery on, 0 below.",
    )
    strength: Annotated[float | None, TRAINING] = Field(
        default=None,
        ge=0,
        description="Strength of the views' augmentation, relative to that of the base model's training; default: "
        "1.75 from 16 epochs of recovery on, 1 below.",
    )
    class_weights: Annotated[Literal["balanced"] | None, TRAINING] = Field(
        default=None,
        description="balanced: the base model and the fusion learn as much from each class, however few its images; "
        "default: from each image.",
    )
    batch_size: Annotated[int, TRAINING] = Field(default=64, ge=2, description="Images in a training step.")
    baseline: Annotated[bool, TRAINING, Parameter(negative="--no-baseline")] = Field(
        default=True, description="Also build N = 1: one sub-model of the same widths for all classes, to compare."
    )
    workers: Annotated[int, MACHINE, Parameter(show_default=lambda _: "one for each core")] = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0))),
        ge=1,
        description="Sub-models trained at a time, one thread each; the result does not depend on it.",
    )
    device: Annotated[DeviceKind, MACHINE] = Field(
        default="cpu",
        description="What trains and runs models; cuda: the GPUs that PyTorch sees, sub-models taking turns on them.",
    )
    amp: Annotated[bool | None, MACHINE, Parameter(negative="--no-amp")] = Field(
        default=None,
        description="Train with matrix products in bfloat16 and weights in float32; default: on GPUs, and on CPUs that "
        "have instructions for it.",
    )
    memory_limit_mb: Annotated[int | None, MACHINE, Parameter(name="--memory-limit")] = Field(
        default=None,
        gt=0,
        description="MB that scoring a ViT by --prune channels may take, all workers together; default: what 32 "
        "images at a time need.",
    )
    work_limit: Annotated[float | None, MACHINE] = Field(
        default=None,
        gt=0,
        description="GB that the work folder may take; what does not fit of the base model's streams is computed again "
        "in recovery, which takes longer. Default: half of what its disk has free when the folder is made.",
    )
    checkpoint_every: Annotated[float, MACHINE] = Field(
        default=120.0,
        ge=0,
        le=300,
        description="Seconds between two checkpoints of a stage that takes minutes, from which a killed build goes on.",
    )
    ray: Annotated[str | None, MACHINE] = Field(
        default=None,
        description="Train sub-models on this Ray cluster: auto, or HOST:PORT of its head; all its nodes must see the "
        "work folder.",
    )

    @field_validator("criterion")
    @classmethod
    def _scores(cls, criterion: ChannelCriterion | None, info: ValidationInfo) -> ChannelCriterion | None:
        if criterion is not None and (criterion == "apoz") != is_convnet(info.data.get("model")):
            raise ValueError("apoz is how filters of convolutional networks are scored, and these only so")
        return criterion

    @field_validator("widths")
    @classmethod
    def _fits(cls, widths: Fit | None, info: ValidationInfo) -> Fit | None:
        of_vit = info.data.get("prune") != "channels" and info.data.get("attention") == "dims"
        if widths == "fitted" and not of_vit and not is_convnet(info.data.get("model")):
            raise ValueError("fitted goes with subspace pruning of head dimensions only")
        return widths

    @field_validator("ray")
    @classmethod
    def _runs(cls, ray: str | None, info: ValidationInfo) -> str | None:
        if ray is not None and info.data.get("device") == "cuda":
            raise ValueError("a Ray cluster's tasks run on CPU cores; give either --ray or --device cuda")
        return ray
