"""Reading a user's weights file into a model: safetensors, or a PyTorch file of tensors and nothing else."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor

from edvit.builder.models.family import Classifier, family_of
from edvit.errors import WeightsError

_SAFETENSORS_SUFFIX = ".safetensors"
_PYTORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WRAPPERS = (
    "teacher", "student", "ema", "model_state_dict", "model_state", "net", "network", "module", "params", "weights",
    "backbone", "encoder",
)  # fmt: skip
"""Keys under which checkpoints keep a state dict, beside those that timm knows; an average of weights comes first."""


def load_weights(
    path: Path, name: str, *, image_size: int | None = None, channels: int = 3, classes: int
) -> tuple[Classifier, bool]:
    """The named model with the weights of a file, float32 on the CPU.

    Position embeddings are resampled to `image_size` and the input projection is adapted to `channels`, both as
    timm does. The head is kept if it has `classes` outputs, else it is left freshly initialised.

    Returns:
        The model, and whether its head came from the file.

    Raises:
        ModelError: as `Family.plan`.
        WeightsError: the file is missing, damaged, holds more than tensors, or is of another architecture.
    """
    state = read_weights(path)
    family = family_of(name)
    model = family.create(family.plan(name, image_size=image_size, channels=channels, classes=classes))
    own = model.state_dict()
    state, head_kept = _split_head(_of_backbone(path, state, own), model)
    try:
        fitted = family.fit_weights(state, model)
    except Exception:  # timm meets names and shapes it was not written for, and fails in its own ways
        fitted = state
    _check(path, name, fitted, own, optional=() if head_kept else ("head.weight", "head.bias"))
    model.load_state_dict({**own, **fitted}, strict=True)
    return model, head_kept


def check_weights(path: Path) -> None:
    """Whether there is a file, of a kind that is read; nothing of it is read yet.

    Raises:
        WeightsError: there is none, it is a folder, or of another kind.
    """
    known = (_SAFETENSORS_SUFFIX, *_PYTORCH_SUFFIXES)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; give the weights file in it ({', '.join(known)})")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix not in known:
        raise WeightsError(f"{path}: unknown kind of weights file; {', '.join(known)} are read")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file by name, floating-point ones as float32, on the CPU.

    Training checkpoints are unwrapped by timm's rules (an average of weights before the weights, `_orig_mod.` and
    `module.` removed), and by `WRAPPERS`. Nothing in the file is executed.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything else than tensors.
    """
    check_weights(path)
    state = _read_safetensors(path) if path.suffix == _SAFETENSORS_SUFFIX else _read_pytorch(path)
    if not state:
        raise WeightsError(f"{path}: holds no tensors")
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path}: {name} holds NaN or infinite values; these weights cannot be used")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = clean_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or no safetensors file ({_one_line(error)}); get it again") from None
    return tensors


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the pickle protocol of what it then refuses
            content: Any = timm.models.load_state_dict(str(path), weights_only=True)
    except RuntimeError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: refused, it holds Python objects or code beside tensors; save the state dict alone, "
                "best as safetensors"
            ) from None
        raise _damaged(path) from None
    except AttributeError:  # timm asks it for names
        raise WeightsError(f"{path}: no state dict (names to tensors) in it") from None
    except Exception:  # damaged bytes make torch.load raise nearly anything
        raise _damaged(path) from None
    while not (content and all(isinstance(value, Tensor) for value in content.values())):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            keys = ", ".join(map(str, list(content)[:5]))
            raise WeightsError(f"{path}: no state dict (names to tensors) in it; its first keys are {keys or 'none'}")
        content = clean_state_dict(inner)
    return dict(content)


def _damaged(path: Path) -> WeightsError:
    return WeightsError(f"{path}: damaged or no PyTorch weights file; get it again")


def _of_backbone(path: Path, state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the model in a state dict that holds it under a prefix, such as Lightning's `model.`.

    A decoder beside the model, as in a file of a masked autoencoder, is left out.

    Raises:
        WeightsError: the file holds the model more than once.
    """
    state = {name: value for name, value in state.items() if not name.startswith("decoder_")}
    anchor = next(name for name in own if "." in name)
    prefixes = sorted(name.removesuffix(anchor) for name in state if name.endswith(f".{anchor}"))
    if anchor in state or not prefixes or prefixes[0].startswith("visual."):  # CLIP's names are timm's to convert
        return state
    if len(prefixes) > 1:
        raise WeightsError(f"{path}: holds several models ({', '.join(prefixes)}); save the one to split alone")
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _split_head(state: dict[str, Tensor], model: Classifier) -> tuple[dict[str, Tensor], bool]:
    """The state without a head of another number of classes, and whether the head stays."""
    weight = state.get("head.weight")
    if weight is not None and model.num_classes > 0 and weight.shape[0] == model.num_classes:
        return state, True
    return {name: value for name, value in state.items() if name not in ("head.weight", "head.bias")}, False


def _check(
    path: Path, name: str, state: dict[str, Tensor], expected: dict[str, Tensor], optional: tuple[str, ...]
) -> None:
    """Compare with what the model has; the message names the first tensor that differs."""
    for key, want in expected.items():
        if key not in state:
            if key in optional:
                continue
            raise WeightsError(f"{path}: not weights of {name}: {key} is missing, {list(want.shape)} was expected")
        if state[key].shape != want.shape:
            came, wanted = list(state[key].shape), list(want.shape)
            raise WeightsError(f"{path}: not weights of {name}: {key} is {came}, {wanted} was expected")
    for key, value in state.items():
        if key not in expected:
            raise WeightsError(f"{path}: not weights of {name}: {key} {list(value.shape)} has no place in it")
