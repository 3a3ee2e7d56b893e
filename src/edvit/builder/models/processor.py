"""What an image processor of transformers (`preprocessor_config.json`) does to images, in our terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

Interpolation = Literal["bilinear", "bicubic"]
Numbers = tuple[float, ...]

_BY = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's names of its filters, by their numbers."""
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_convert_rgb", "use_fast",
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square",
    "model_input_names", "_valid_processor_keys",
}  # fmt: skip
"""Keys that change no pixel of an RGB image."""


@dataclass(frozen=True)
class _Kind:
    """What a class of transformers does where the file says nothing."""

    mean: Numbers
    std: Numbers
    resample: int
    size: int
    square: bool
    """Whether a size that is one number stands for both sides, so that images are stretched."""
    crop: int | None


_HALF = (0.5, 0.5, 0.5)
_VIT = _Kind(_HALF, _HALF, 2, 224, square=True, crop=None)
_DEIT = _Kind(_HALF, _HALF, 3, 256, square=True, crop=224)
_BIT = _Kind(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, 3, 224, square=False, crop=224)
_KINDS = {"ViT": _VIT, "DeiT": _DEIT, "Bit": _BIT, "CLIP": _BIT}
_OF_MODELS = {"vit": _VIT, "vit_mae": _VIT, "deit": _DEIT, "dinov2": _BIT, "dinov2_with_registers": _BIT}


@dataclass(frozen=True)
class Seen:
    """How images reach a model.

    Attributes:
        mean: per channel, on a scale of 0 to 1, with the rescaling in it; None: nothing says so.
        std: likewise.
        interpolation: the nearest of ours; None: nothing says so.
        pixels: of each side of what the model is shown; None: nothing says so, or the sides differ.
        otherwise: what is done to images that we do not do, in words.
    """

    mean: Numbers | None
    std: Numbers | None
    interpolation: Interpolation | None
    pixels: int | None
    otherwise: tuple[str, ...]


class Processor(BaseModel):
    """The file; what it does not know by name is in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_normalize: bool = True
    image_mean: float | Numbers | None = None
    image_std: float | Numbers | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    rescale_offset: bool = False
    do_resize: bool = True
    size: int | dict[str, int | None] | None = None
    resample: int | None = None
    do_center_crop: bool | None = None
    crop_size: int | dict[str, int | None] | None = None
    do_flip_channel_order: bool = False

    def seen(self, model_type: str) -> Seen:
        """How images reach a model of this type. Raises ValueError: in a way that cannot be followed."""
        if self.do_flip_channel_order:
            raise ValueError(
                "do_flip_channel_order shows the model blue first; turn its weights (docs/models.md has the line) and "
                "set it to false"
            )
        kind = self._kind(model_type)
        mean, std = self._statistics(kind)
        number = self.resample if self.resample is not None else None if kind is None else kind.resample
        framed, pixels = self._framed(kind)
        filtered = () if number in (None, 2, 3) or not self.do_resize else (f"resized by {_name(number)}",)
        unread = tuple(f"changed by {key}" for key, value in (self.model_extra or {}).items()
                       if key not in _HARMLESS and value not in (None, False))  # fmt: skip
        nearest: Interpolation | None = None if number is None else "bicubic" if number in (1, 3) else "bilinear"
        return Seen(mean, std, nearest, pixels, (*framed, *filtered, *unread))

    def _kind(self, model_type: str) -> _Kind | None:
        named = self.image_processor_type or self.feature_extractor_type
        if named is None:
            return _OF_MODELS.get(model_type)
        return _KINDS.get(named.partition("ImageProcessor")[0].partition("FeatureExtractor")[0])

    def _statistics(self, kind: _Kind | None) -> tuple[Numbers | None, Numbers | None]:
        """Mean and deviation of `(255 * factor * image - offset - mean) / std`, for images of 0 to 1."""
        mean, std = _numbers(self.image_mean), _numbers(self.image_std)
        if not self.do_normalize:
            mean, std = (0.0,), (1.0,)
        elif kind is not None:
            mean, std = mean or kind.mean, std or kind.std
        scale = 255 * self.rescale_factor if self.do_rescale else 255.0
        offset = 1.0 if self.do_rescale and self.rescale_offset else 0.0
        if not math.isfinite(scale) or scale == 0 or any(value == 0 for value in std or ()):
            raise ValueError("rescale_factor or image_std is 0 or no number")
        if math.isclose(scale, 1) and offset == 0:
            return mean, std
        if mean is None or std is None:
            raise ValueError("it rescales images in a way of its own, and says no image_mean and image_std")
        return tuple((value + offset) / scale for value in mean), tuple(value / scale for value in std)

    def _framed(self, kind: _Kind | None) -> tuple[tuple[str, ...], int | None]:
        """How images become a square in words, where it is not by their short side; and the square's pixels."""
        size = self.size if self.size is not None else None if kind is None else kind.size
        crops = self.do_center_crop if self.do_center_crop is not None else kind is not None and kind.crop is not None
        crop = _side(self.crop_size) or (None if kind is None else kind.crop)
        if not self.do_resize:
            return (("cut from their middle without a resize",), crop) if crops else ((), None)
        side, stretched = _side(size), kind is None or kind.square
        if isinstance(size, dict):
            stretched = "height" in size
            if side is None:
                return (f"resized to {size}",), None
        said = ("stretched to a square",) if stretched and side is not None else ()
        if not crops or crop is None or side is None or crop == side:
            return said, side
        cut = f"cut to the middle {crop / side:.0%} of each side" if crop < side else f"padded from {side} to {crop}"
        return (*said, cut), crop


def _side(size: int | dict[str, int | None] | None) -> int | None:
    """Pixels of the short side; None: nothing says so, or the sides differ."""
    if not isinstance(size, dict):
        return size
    sides = {size.get("height"), size.get("width")} if "height" in size else {size.get("shortest_edge")}
    return sides.pop() if len(sides) == 1 else None


def _numbers(value: float | Numbers | None) -> Numbers | None:
    return (value,) if isinstance(value, float) else value


def _name(number: int | None) -> str:
    return _BY[number] if number is not None and 0 <= number < len(_BY) else f"filter {number}"


def middle(share: Any) -> tuple[str, ...]:
    """timm's `crop_pct`, in words as in `Seen.otherwise`."""
    return (f"cut to the middle {share:.0%} of each side",) if isinstance(share, float) and 0 < share < 1 else ()


def filtered(name: Any) -> tuple[str, ...]:
    """timm's `interpolation`, likewise, where we have none such."""
    return (f"resized by {name}",) if isinstance(name, str) and name and name not in ("bilinear", "bicubic") else ()
