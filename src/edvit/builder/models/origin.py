"""Where the weights of a base model come from (files, Hugging Face folders, the hub), and what lies beside them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from pydantic import BaseModel, Field, ValidationError

from edvit.builder.models.class_names import SYNSET
from edvit.builder.models.processor import Interpolation, Processor, Seen, filtered, middle
from edvit.builder.models.weights_file import SUFFIXES, check_file, read_metadata, taken_of_several
from edvit.builder.vit.arguments import changes
from edvit.errors import WeightsError
from edvit.shape.image import ImageSize
from edvit.validation import first_problem

HUB = "hf-hub:"
"""What the name of a repository of Hugging Face's hub begins with, as in timm."""
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder, in the order of preference; `NAME.index.json` lists the shards of one."""
_JSON = [CONFIG, PROCESSOR]

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_HARMLESS = {
    "img_size", "in_chans", "num_classes", "global_pool", "fc_norm", "dynamic_img_size", "dynamic_img_pad",
    "strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init",
}  # fmt: skip
"""Arguments of a timm model that change nothing but what is read here or what only training has."""
MOST_DIGITS = 9
"""Digits of the number of an output; Python refuses to read thousands of them."""
MOST_NAME = 255
"""Characters of the name of a file of weights; file systems take no longer ones."""
MOST_EPS = 1e-5
"""Largest epsilon of a LayerNorm that is taken for timm's 1e-6: variances of a stream are far above both."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of itself beside its tensors; None where it says nothing.

    Attributes:
        source: what says so, for messages.
        processor: what says mean and deviation, likewise, where that is another file.
        model: timm's name of the model.
        named: whether it says that name; False: it says a shape, and that is the name of a model of that shape.
        image_size: of its input.
        classes: names of the outputs of its head, in their order.
        mean: per channel, on a scale of 0 to 1.
        std: likewise.
        interpolation: how its images were resized.
        pixels: of each side of what its image processor shows the model, where there is one.
        otherwise: what was done to its images and is not done by us, in words, such as "stretched to a square".
        heads: of each block's attention; tensors do not tell.
        pool: how it pools its tokens, as `edvit.shape.vit.Pool` names it; other words where it cannot be split.
        accuracy: top-1 accuracy that was measured when it was saved, 0 to 1.
        weights: the keys under which the file holds weights, the one that is taken first; empty where there is one.
    """

    source: str = ""
    processor: str | None = None
    model: str | None = None
    named: bool = True
    image_size: ImageSize | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    pixels: int | None = None
    otherwise: tuple[str, ...] = ()
    heads: int | None = None
    pool: str | None = None
    accuracy: float | None = None
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Weights of a base model as a user named them; none of their tensors is read yet.

    Attributes:
        given: what the user named, for messages.
        files: that hold the tensors, several where these come in shards.
        facts: what is written beside them.
    """

    given: str
    files: tuple[Path, ...]
    facts: Facts = field(default_factory=Facts)


def find_weights(given: Path) -> Origin:
    """The weights under a path or, as `hf-hub:OWNER/NAME`, in a repository of Hugging Face's hub, which is downloaded.

    Raises:
        WeightsError: there are none, they cannot be downloaded, or the config beside them cannot be used.
    """
    text = str(given)
    if text.startswith(HUB):
        return _of_folder(text, _downloaded(text.removeprefix(HUB)))
    path = given.expanduser()
    if path.is_dir():
        return _of_folder(text, path)
    check_file(path)
    if path.name in _WEIGHTS and (path.parent / CONFIG).is_file():
        return Origin(text, (path,), _facts_of_folder(text, path.parent))
    return Origin(text, (path,), _facts_of_checkpoint(read_metadata(path)))


def pretrained_weights(model: str) -> Origin:
    """The weights that timm has for a model of this name, downloaded.

    Raises:
        WeightsError: it has none on the hub, or they cannot be downloaded.
    """
    known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is None or not known.hf_hub_id:
        raise WeightsError(f"timm has no pretrained weights for {model}; give --weights, or train without --pretrained")
    return _of_folder(f"timm's {known.hf_hub_id}", _downloaded(known.hf_hub_id))


def _downloaded(name: str) -> Path:
    """The folder of a repository in Hugging Face's cache, with its config and its weights."""
    repository, _, revision = name.partition("@")
    for weights in _WEIGHTS:
        stem, suffix = Path(weights).stem, Path(weights).suffix
        patterns = [*_JSON, weights, f"{weights}.index.json", f"{stem}-*{suffix}"]
        try:
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except LocalEntryNotFoundError:
            raise WeightsError(
                f"{HUB}{name}: cannot be downloaded, and is not in Hugging Face's cache; check the network, or "
                "download the repository elsewhere and give its folder"
            ) from None
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            raise WeightsError(f"{HUB}{name}: cannot be downloaded ({_one_line(error)})") from None
        if _weights_in(folder) is not None:
            return folder
    raise WeightsError(f"{HUB}{name}: holds none of {', '.join(_WEIGHTS)}")


# --- folders ---------------------------------------------------------------------------------------------------


def _of_folder(given: str, folder: Path) -> Origin:
    files = _weights_in(folder)
    if files is None:
        loose = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if len(loose) != 1:
            found = f"it has several, such as {loose[0].name}: give one" if loose else "it has no weights file"
            raise WeightsError(f"{given}: is a folder without {' or '.join(_WEIGHTS)}; {found}")
        files = tuple(loose)
    if not (folder / CONFIG).is_file():
        return Origin(given, files, _facts_of_checkpoint(read_metadata(files[0])))
    return Origin(given, files, _facts_of_folder(given, folder))


def _weights_in(folder: Path) -> tuple[Path, ...] | None:
    """The files of the weights that have the usual names; None: there are none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(_read(index, _Index).weight_map.values()))
            missing = [shard for shard in shards if len(shard) > MOST_NAME or not (folder / shard).is_file()]
            if missing or any(Path(shard).name != shard for shard in shards):
                raise WeightsError(f"{index}: lists {missing[0] if missing else shards[0]}, which is not beside it")
            return tuple(folder / shard for shard in shards)
    return None


class _Index(BaseModel):
    weight_map: dict[str, str] = Field(min_length=1)


class _TimmInput(BaseModel):
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    input_size: tuple[int, int, int] | None = None
    label_names: list[str] | dict[str, str] | None = None


class _TimmConfig(BaseModel):
    architecture: str
    global_pool: str | None = None
    label_names: list[str] | dict[str, str] | None = None
    label_descriptions: dict[str, str] = {}
    model_args: dict[str, Any] = {}
    pretrained_cfg: _TimmInput


_TransformersType = Literal["vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae"]


class _TransformersConfig(BaseModel):
    model_type: _TransformersType
    hidden_size: int = 768
    num_attention_heads: int = 12
    patch_size: int = 16
    image_size: ImageSize = ImageSize(224, 224)
    hidden_act: str = "gelu"
    use_swiglu_ffn: bool = False
    layer_norm_eps: float = 1e-6
    architectures: list[str] = []
    id2label: dict[str, str] = {}

    def timm_name(self) -> str | None:
        """timm's name of a model of this kind and width; None: it has none."""
        size = _SIZES.get(self.hidden_size, "?")
        names = {
            "vit": [f"vit_{size}_patch{self.patch_size}_{pixels}" for pixels in (self.image_size, 224)],
            "vit_mae": [f"vit_{size}_patch{self.patch_size}_224"],
            "deit": [f"deit_{size}_distilled_patch{self.patch_size}_{pixels}" for pixels in (self.image_size, 224)],
            "dinov2": [f"vit_{size}_patch{self.patch_size}_dinov2"],
            "dinov2_with_registers": [f"vit_{size}_patch{self.patch_size}_reg4_dinov2"],
        }
        return next((name for name in names[self.model_type] if timm.is_model(name)), None)

    def pool(self) -> str | None:
        """How the head reads the tokens, in our word; None: there is no head."""
        if not any(name.endswith(("ForImageClassification", "WithTeacher")) for name in self.architectures):
            return None
        return "token+avg" if self.model_type.startswith("dinov2") else "token"


def _facts_of_folder(given: str, folder: Path) -> Facts:
    config = _read(folder / CONFIG, dict)
    if "model_type" in config:
        shape = _parsed(folder / CONFIG, config)
        return _of_transformers(given, shape, _seen(folder / PROCESSOR, shape.model_type))
    if "pretrained_cfg" not in config:  # as timm wrote them at first
        config = {"architecture": config.get("architecture"), "pretrained_cfg": config, **config}
    return _of_timm(given, _read_as(folder / CONFIG, _TimmConfig, config))


def _parsed(path: Path, config: Mapping[str, Any]) -> _TransformersConfig:
    if config["model_type"] not in get_args(_TransformersType):
        raise WeightsError(
            f"{path}: is of a model of type {config['model_type']!r}; of transformers' models vit, deit, dinov2, "
            "dinov2_with_registers and vit_mae can be split"
        )
    parsed: _TransformersConfig = _read_as(path, _TransformersConfig, config)
    return parsed


def _seen(path: Path, model_type: str) -> Seen | None:
    """How the image processor beside the weights shows images to a model; None: there is none. Raises WeightsError."""
    if not path.is_file():
        return None
    processor: Processor = _read(path, Processor)
    try:
        return processor.seen(model_type)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def _of_transformers(given: str, config: _TransformersConfig, seen: Seen | None) -> Facts:
    if config.hidden_act != "gelu" or config.use_swiglu_ffn:
        what = "a gated FFN (SwiGLU)" if config.use_swiglu_ffn else f"the activation {config.hidden_act}"
        raise WeightsError(f"{given}: has {what}, and transformers' models are split with plain GELU layers alone")
    if config.layer_norm_eps > MOST_EPS:
        raise WeightsError(
            f"{given}: has layer_norm_eps {config.layer_norm_eps:g}, and models are split with timm's, 1e-06; train it "
            f"with at most {MOST_EPS:g}"
        )
    names = tuple(config.id2label[key] for key in sorted(config.id2label, key=_number))
    return Facts(
        source=CONFIG,
        processor=None if seen is None else PROCESSOR,
        model=config.timm_name(),
        named=False,
        image_size=config.image_size,
        classes=None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names,
        mean=None if seen is None else seen.mean,
        std=None if seen is None else seen.std,
        interpolation=None if seen is None else seen.interpolation,
        pixels=None if seen is None else seen.pixels,
        otherwise=() if seen is None else seen.otherwise,
        heads=config.num_attention_heads,
        pool=config.pool(),
    )


def _of_timm(given: str, config: _TimmConfig) -> Facts:
    name = config.architecture
    asked = {what: value for what, value in sorted(config.model_args.items()) if what not in _HARMLESS}
    strange = changes(name, asked) if asked and timm.is_model(name) else list(asked)
    if strange:
        shown = ", ".join(f"{what} {_one_line(json.dumps(asked[what]))}" for what in strange)
        raise WeightsError(
            f"{given}: was built with {shown}, and timm's {name} is not; only models that timm has a name for are "
            f"split: if it has one for this model, write it in {CONFIG} as architecture, and remove model_args"
        )
    how, size = config.pretrained_cfg, config.pretrained_cfg.input_size
    names = config.label_names or how.label_names
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=_number)]
    if names:  # a synset says which words it stands for
        words = config.label_descriptions
        names = [f"{name} {words[name]}" if SYNSET.match(name) and name in words else name for name in names]
    return Facts(
        source=CONFIG,
        model=config.architecture,
        image_size=_image_size((size or ())[1:]),
        classes=tuple(names) if names else None,
        mean=how.mean,
        std=how.std,
        interpolation=_interpolation(how.interpolation),
        otherwise=(*middle(how.crop_pct), *filtered(how.interpolation)),
        pool=config.global_pool,
    )


def _read(path: Path, kind: Any) -> Any:
    """A JSON file as a dictionary, or as a model of pydantic's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: is no JSON object")
    return content if kind is dict else _read_as(path, kind, content)


def _read_as(path: Path, kind: Any, content: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise WeightsError(f"{path}: {first_problem(error)}") from None


def _number(key: str) -> int:
    return int(key) if key.isdecimal() and len(key) <= MOST_DIGITS else 0


def _interpolation(name: str | None) -> Interpolation | None:
    return name if name in ("bilinear", "bicubic") else None  # type: ignore[return-value]


# --- training checkpoints --------------------------------------------------------------------------------------


def _facts_of_checkpoint(content: Mapping[str, Any]) -> Facts:
    """What timm's train.py writes beside the weights (the model's name, its own arguments, and its metric), or what
    `edvit.builder.models.checkpoint` does."""
    args = content.get("args")
    asked = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    arch = asked.get("model", content.get("arch"))
    metric, top1 = content.get("metric"), asked.get("eval_metric", "top1") == "top1"
    return Facts(
        source="the checkpoint's arguments",
        model=arch if isinstance(arch, str) and timm.is_model(arch) else None,
        image_size=_own_size(content) or _image_size(asked.get("img_size") or _last_two(asked.get("input_size"))),
        mean=_numbers(asked.get("mean")),
        std=_numbers(asked.get("std")),
        interpolation=_interpolation(asked.get("interpolation")),
        otherwise=(*middle(asked.get("crop_pct")), *filtered(asked.get("interpolation"))),
        pool=asked["gp"] if isinstance(asked.get("gp"), str) else None,
        accuracy=metric / 100 if isinstance(metric, float) and top1 and 0 < metric <= 100 else None,
        weights=taken_of_several(content),
    )


def _own_size(content: Mapping[str, Any]) -> ImageSize | None:
    """The image size in the architecture that files of ours hold."""
    try:
        return _image_size(json.loads(content["architecture"])["image_size"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _last_two(value: Any) -> Any:
    """Height and width of a shape that a file says; None where it is no list."""
    return value[1:] if isinstance(value, list | tuple) else None


def _image_size(value: Any) -> ImageSize | None:
    """A size as a file says it; None where it says none that there can be."""
    try:
        return ImageSize.of(value)
    except ValueError:
        return None


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, list | tuple) and value and all(isinstance(part, int | float) for part in value):
        with suppress(OverflowError):  # a whole number of hundreds of digits
            return tuple(float(part) for part in value)
    return None


def _one_line(told: Exception | str) -> str:
    return " ".join(str(told).split())[:200]
