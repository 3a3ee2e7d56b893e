"""Whole and pruned models on disk: safetensors, with the architecture in the file's own metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edvit.builder.models.family import Classifier, describe, family_of
from edvit.errors import BuildError
from edvit.shape.any import AnyArchitecture

WEIGHTS = "model.safetensors"
"""Name of the file in the folder of a result that is a model."""

_ARCHITECTURE: TypeAdapter[AnyArchitecture] = TypeAdapter(AnyArchitecture)


def parse_architecture(value: object) -> AnyArchitecture:
    """The architecture that `model_dump(mode="json")` gave. Raises ValueError."""
    return _ARCHITECTURE.validate_json(json.dumps(value))


def save_model(path: Path, model: Classifier) -> None:
    """Write weights and architecture."""
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={"architecture": describe(model).model_dump_json()})


def read_architecture(path: Path) -> AnyArchitecture:
    """The shape of a model that `save_model` wrote; its weights are not read.

    Raises:
        BuildError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _architecture_in(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def load_model(path: Path) -> Classifier:
    """Read what `save_model` wrote, in evaluation mode; torch's global generator stays as it is.

    Raises:
        BuildError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            architecture = _architecture_in(file)
            # Copied: what `get_tensor` gives is a view of the file, which a later build may replace.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None
    model = family_of(architecture.name).template(architecture)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    return model.eval()


def _architecture_in(file: Any) -> AnyArchitecture:
    return _ARCHITECTURE.validate_json((file.metadata() or {})["architecture"])


def _unreadable(path: Path, error: Exception) -> BuildError:
    return BuildError(f"{path}: no readable model ({type(error).__name__}); remove it and build again")
