"""Families of models: what the stages of a build need to know of the model that they split.

One interface: timm's Vision Transformers, and convolutional networks, plain or spiking, which differ in their neurons
alone (`edvit.builder.conv.network`). Export needs none of it: whatever answers to timm's `forward_features` and
`forward_head` is exported in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.conv import apoz, filters, network
from edvit.builder.conv.network import ConvNet
from edvit.builder.jobs.job import unkeyed
from edvit.builder.options import Fit
from edvit.builder.subspace import attention
from edvit.builder.vit import backbone, importance, surgery
from edvit.builder.vit.scores import Scores
from edvit.errors import ModelError
from edvit.shape.any import AnyArchitecture
from edvit.shape.conv import ConvArchitecture, FilterWidths, convnet, is_convnet
from edvit.shape.image import ImageSize
from edvit.shape.vit import Architecture, Pool, Widths

Classifier: TypeAlias = VisionTransformer | ConvNet
AnyWidths: TypeAlias = Widths | FilterWidths
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """What pruning left of the base model in one sub-model, shares 0 to 1; it is noted beside the pruned model.

    Attributes:
        attention: per block; by channels, of the importance; by subspace, of the variance of the stream after it.
        ffn: likewise.
        channels: by channels, which residual channels; else empty.
        energy: by subspace, what the kept directions hold of the stream's second moment; else None.
        filters: of a convolutional network, per set, of the activity.
    """

    attention: tuple[float, ...] = ()
    ffn: tuple[float, ...] = ()
    channels: tuple[bool, ...] = ()
    energy: float | None = None
    filters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Input:
    """How images reach a model: mean and deviation per channel on a scale of 0 to 1, and how they are resized."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Scoring:
    """How components are scored."""

    criterion: str
    batch_size: int = unkeyed()
    exact_heads: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """Scores of every component, on some of a group's images."""

    path: Path
    images: int
    """How many."""


@dataclass(frozen=True)
class Narrowed:
    """A pruned model, its rotation `Q` `[base dim, dim]`, and what it kept."""

    model: Classifier
    rotation: Tensor
    kept: Kept


class Family(Protocol):
    """One kind of model."""

    def plan(
        self,
        name: str,
        *,
        image_size: ImageSize | int | None,
        channels: int,
        classes: int,
        pool: Pool | None = None,
        fc_norm: bool | None = None,
    ) -> AnyArchitecture:
        """The shape of a whole model, before there is one. Raises ModelError.

        Args:
            name: of the model.
            image_size: one number is a square, pixels; None: the model's own.
            channels: of the images.
            classes: outputs of the head.
            pool: how tokens are pooled, as the config of a checkpoint may say; None: the model's own way.
            fc_norm: likewise, whether the last norm comes after pooling; None: as timm has it for that pooling.
        """

    def input(self, name: str) -> Input:
        """How images reach it, for its own number of channels."""

    def create(self, architecture: AnyArchitecture) -> Classifier:
        """A freshly initialised model, whole or pruned, drawn from torch's global generator."""

    def template(self, architecture: AnyArchitecture) -> Classifier:
        """The model that `create` makes, on torch's meta device: every name and shape, nothing drawn."""

    def describe(self, model: Classifier) -> AnyArchitecture:
        """The shape of a model."""

    def fit_weights(
        self, state: dict[str, Tensor], model: Classifier, image_size: ImageSize | None = None
    ) -> dict[str, Tensor]:
        """A checkpoint's tensors as `model` has them, where that can be done; its own image size may be known."""

    def score(
        self, model: Classifier, images: Tensor, how: Scoring, progress: Callable[[int, int], None], path: Path
    ) -> None:
        """Score every component that channel pruning may remove on normalised images, into a file."""

    def cut(self, model: Classifier, scores: Sequence[Scored], budget: AnyWidths, fit: Fit) -> Narrowed:
        """A new model of the components that score best, of the budget's widths or `fit` to it.

        Args:
            scores: on the group's images, part after part; at least one.
        """


class VitFamily:
    """timm's Vision Transformers."""

    def plan(
        self,
        name: str,
        *,
        image_size: ImageSize | int | None,
        channels: int,
        classes: int,
        pool: Pool | None = None,
        fc_norm: bool | None = None,
    ) -> Architecture:
        planned = backbone.template(
            name, image_size=image_size, channels=channels, classes=classes, pool=pool, fc_norm=fc_norm
        )
        return backbone.describe(planned)

    def input(self, name: str) -> Input:
        known = backbone.pretrained_cfg(name)
        mean, std = (tuple(float(value) for value in known[key]) for key in ("mean", "std"))
        return Input(mean, std, "bilinear" if known.get("interpolation") == "bilinear" else "bicubic")

    def create(self, architecture: AnyArchitecture) -> VisionTransformer:
        return backbone.initialised(self.template(architecture))

    def template(self, architecture: AnyArchitecture) -> VisionTransformer:
        return backbone.template_of(_vit(architecture))

    def describe(self, model: Classifier) -> Architecture:
        return backbone.describe(model)

    def fit_weights(
        self, state: dict[str, Tensor], model: Classifier, image_size: ImageSize | None = None
    ) -> dict[str, Tensor]:
        return backbone.fit_weights(state, model, image_size)

    def score(
        self, model: Classifier, images: Tensor, how: Scoring, progress: Callable[[int, int], None], path: Path
    ) -> None:
        importance.score(model, images, **{**asdict(how), "progress": progress}).save(path)

    def cut(self, model: Classifier, scores: Sequence[Scored], budget: AnyWidths, fit: Fit) -> Narrowed:
        known, shape = Scores.mean(*_loaded(Scores.load, scores)), backbone.describe(model)
        selection = surgery.select(known, shape, vit_widths(budget))
        rotation = attention.selection(selection.dim, shape.widths.dim)
        return Narrowed(surgery.prune(model, selection), rotation, kept_importance(known, selection))


class ConvFamily:
    """Our convolutional networks, plain and spiking: they differ in the neuron alone (`edvit.builder.conv.network`)."""

    def plan(
        self,
        name: str,
        *,
        image_size: ImageSize | int | None,
        channels: int,
        classes: int,
        pool: Pool | None = None,
        fc_norm: bool | None = None,
    ) -> ConvArchitecture:
        if pool is not None or fc_norm is not None:
            raise ModelError(f"{name} has no tokens, so no other pooling of them; give none")
        return convnet(name, image_size=image_size, channels=channels, classes=classes)

    def input(self, name: str) -> Input:
        return Input((0.5,) * 3, (0.5,) * 3, "bicubic")

    def create(self, architecture: AnyArchitecture) -> ConvNet:
        return network.create(_conv(architecture))

    def template(self, architecture: AnyArchitecture) -> ConvNet:
        with torch.device("meta"):
            return network.create(_conv(architecture))

    def describe(self, model: Classifier) -> ConvArchitecture:
        shape: ConvArchitecture = model.architecture
        return shape

    def fit_weights(
        self, state: dict[str, Tensor], model: Classifier, image_size: ImageSize | None = None
    ) -> dict[str, Tensor]:
        return state

    def score(
        self, model: Classifier, images: Tensor, how: Scoring, progress: Callable[[int, int], None], path: Path
    ) -> None:
        apoz.activity(model, images, batch_size=how.batch_size, progress=progress).save(path)

    def cut(self, model: Classifier, scores: Sequence[Scored], budget: AnyWidths, fit: Fit) -> Narrowed:
        known, shape = apoz.Activity.mean(*_loaded(apoz.Activity.load, scores)), self.describe(model)
        if not isinstance(budget, FilterWidths):
            raise TypeError("a convolutional network has widths of filters alone")
        target = filters.active_widths(shape, known, budget) if fit == "fitted" else budget
        kept = filters.select(known, shape, target)
        shares = tuple(
            share(float(values[rows].sum()), float(values.sum())) for values, rows in zip(known.sets, kept, strict=True)
        )
        rotation = attention.selection(kept[shape.feature], shape.feature_dim)
        return Narrowed(filters.cut(model, kept), rotation, Kept(filters=shares))


VIT = VitFamily()
CONV = ConvFamily()


def family_of(name: str) -> Family:
    """The family of a model by its name: our convolutional networks have names of their own, all others are timm's."""
    return CONV if is_convnet(name) else VIT


def family_for(model: Classifier) -> Family:
    """The family of a model."""
    return CONV if isinstance(model, ConvNet) else VIT


def describe(model: Classifier) -> AnyArchitecture:
    """The shape of a model, of whichever family."""
    return family_for(model).describe(model)


def share(part: float, whole: float) -> float:
    """A part of a whole, 0 to 1; what is kept of nothing is kept whole."""
    return part / whole if whole > 0 else 1.0


def kept_importance(scores: Scores, selection: surgery.Selection) -> Kept:
    """What a selection keeps of the scores it was made from; a block whose scores are all 0 counts as kept whole."""
    attended, ffn = [], []
    for index, block in enumerate(selection.blocks):
        kept = scores.attn[index][block.heads].gather(1, block.head_dims)
        attended.append(share(float(kept.sum()), float(scores.attn[index].sum())))
        ffn.append(share(float(scores.hidden[index][block.hidden].sum()), float(scores.hidden[index].sum())))
    channels = set(selection.dim.tolist())
    return Kept(tuple(attended), tuple(ffn), tuple(channel in channels for channel in range(len(scores.dim))))


def vit_widths(widths: AnyWidths) -> Widths:
    """These widths, where they are a ViT's; raises TypeError where they are not."""
    if not isinstance(widths, Widths):
        raise TypeError("a ViT has no widths of filters")
    return widths


def _loaded(load: Callable[[Path], T], scores: Sequence[Scored]) -> tuple[list[T], list[int]]:
    return [load(part.path) for part in scores], [part.images for part in scores]


def _vit(architecture: AnyArchitecture) -> Architecture:
    if not isinstance(architecture, Architecture):
        raise TypeError(f"{architecture.name} is no ViT")
    return architecture


def _conv(architecture: AnyArchitecture) -> ConvArchitecture:
    if not isinstance(architecture, ConvArchitecture):
        raise TypeError(f"{architecture.name} is no convolutional network")
    return architecture
