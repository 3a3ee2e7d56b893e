"""Reading the tensors of weights files: safetensors, or PyTorch files of tensors and nothing else."""

from __future__ import annotations

import argparse
import codecs
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from torch import Tensor

from edvit.errors import WeightsError

_SAFETENSORS_SUFFIX = ".safetensors"
_PYTORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (_SAFETENSORS_SUFFIX, *_PYTORCH_SUFFIXES)
WRAPPERS = (
    "teacher", "student", "ema", "ema_model", "swa_model", "model_state_dict", "model_state", "net", "network",
    "module", "params", "weights", "backbone", "encoder",
)  # fmt: skip
"""Keys under which checkpoints keep a state dict, beside those that timm knows; an average of weights comes first."""
_TIMMS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""The keys that timm knows, in its order of preference: an average of the weights (EMA) comes first."""
_COUNT = "n_averaged"
"""What torch's AveragedModel keeps beside the model: of how many weights it is the mean."""

_HEAD = 256
"""Bytes at the beginning of a file that show its kind."""
_LFS = b"version https://git-lfs"
_MARKUP = (b"<!doctype", b"<html", b"<?xml")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_PRINTABLE = {*range(32, 127), *b"\t\r\n"}


def check_file(path: Path) -> None:
    """Whether there is a file, of a kind that is read; no tensor of it is read yet.

    Raises:
        WeightsError: there is none, or of another kind by its ending or by what it begins with.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"{path}: unknown kind of weights file; {', '.join(SUFFIXES)} are read")
    other = _other_kind(path)
    if other is not None:
        raise WeightsError(f"{path}: {other}")


def _other_kind(path: Path) -> str | None:
    """What a file is and what to do, where it is of a known kind that is not read or that its ending denies."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(_LFS):
        return "is a Git LFS pointer in place of the weights; run git lfs pull in its repository"
    if start.startswith(_MARKUP):
        return "is a web page, such as a login or an error, in place of the weights; download the file itself"
    if head and all(byte in _PRINTABLE for byte in head):
        return f"is a text file in place of the weights; it begins with {head[:60].decode('ascii')!r}"
    is_safetensors = path.suffix.lower() == _SAFETENSORS_SUFFIX
    if is_safetensors and (head.startswith(_ZIP) or (head.startswith(_PICKLE) and head[8:10] != b'{"')):
        return "is a PyTorch file; give it the ending .pth"
    if not is_safetensors and head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "is a safetensors file; give it the ending .safetensors"
    if head.startswith(_ZIP) and _is_torchscript(path):
        return (
            'is TorchScript, which holds code; save its weights alone: python -c "import torch; '
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')\""
        )
    return None


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except Exception:  # damaged bytes make zipfile raise nearly anything; what is wrong comes out when tensors are read
        return False


def read_weights(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor of the files of one checkpoint by name, floating-point ones as float32, on the CPU.

    Training checkpoints are unwrapped by timm's rules (an average of weights before the weights, `_orig_mod.` and
    `module.` removed), and by `WRAPPERS`. Nothing in a file is executed.

    Raises:
        WeightsError: a file is missing, damaged, or holds anything else than tensors, or two files hold one tensor.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        for name, value in _read_file(path).items():
            if name in state:
                raise WeightsError(f"{path}: {name} is in another file of these weights as well; get them again")
            state[name] = value
    return state


def read_metadata(path: Path) -> dict[str, Any]:
    """What a weights file holds beside tensors, by its keys; empty where there is nothing to read.

    Tensors are mapped and not read.
    """
    try:
        if path.suffix.lower() == _SAFETENSORS_SUFFIX:
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever is wrong with the file comes out when its tensors are read
        return {}
    return dict(content) if isinstance(content, dict) else {}


def taken_of_several(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys under which a training checkpoint holds weights, the one that `read_weights` takes first.

    Returns:
        Empty where there are no two of them, such as an average of the weights beside the weights.
    """
    keys = [key for key in (*_TIMMS, *WRAPPERS) if _holds_tensors(content.get(key))]
    return tuple(keys) if len(keys) > 1 else ()


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())


def _read_file(path: Path) -> dict[str, Tensor]:
    check_file(path)
    state = _read_safetensors(path) if path.suffix.lower() == _SAFETENSORS_SUFFIX else _read_pytorch(path)
    if not state:
        raise WeightsError(f"{path}: holds no tensors")
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if name.rpartition(".")[2] != _COUNT
    }
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
