"""Whole and pruned models on disk: safetensors, with the architecture in the file's own metadata."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from edvit.architecture import Architecture
from edvit.builder import backbone
from edvit.errors import BuildError


def save_model(path: Path, model: VisionTransformer) -> None:
    """Write weights and architecture."""
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={"architecture": backbone.describe(model).model_dump_json()})


def load_model(path: Path) -> VisionTransformer:
    """Read what `save_model` wrote, in evaluation mode.

    Raises:
        BuildError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            architecture = Architecture.model_validate_json((file.metadata() or {})["architecture"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None
    model = backbone.create(
        architecture.name,
        image_size=architecture.image_size,
        channels=architecture.channels,
        classes=architecture.classes,
        widths=architecture.widths,
        rotated=architecture.rotated,
    )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    return model.eval()


def _unreadable(path: Path, error: Exception) -> BuildError:
    return BuildError(f"{path}: no readable model ({type(error).__name__}); remove it and build again")
