"""Activity of filters: one less the average share of zero activations (APoZ, Hu et al., arXiv 1607.03250).

What NNFacet (TMC 2023) prunes CNNs by and EC-SNN (IJCAI 2024) spiking networks, on images of the group's own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edvit.builder.conv.network import ConvNet
from edvit.builder.vit.scores import weighted_mean
from edvit.errors import BuildError, DataError


@dataclass(frozen=True)
class Activity:
    """How often each filter is active, 0 to 1, float64 `[filters]` for each set."""

    sets: tuple[Tensor, ...]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({f"{index:03}": values.contiguous() for index, values in enumerate(self.sets)}, path)

    @classmethod
    def load(cls, path: Path) -> Activity:
        """Read what `save` wrote.

        Raises:
            BuildError: the file is missing or damaged.
        """
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BuildError(f"{path}: no readable scores ({type(error).__name__}); remove it and run again") from None
        return cls(tuple(tensors[name] for name in sorted(tensors)))

    @classmethod
    def mean(cls, activities: Sequence[Activity], images: Sequence[int]) -> Activity:
        """The activity on all images, from the activity on parts of them with `images` images each."""
        return cls(
            tuple(
                weighted_mean(list(one_set), images) for one_set in zip(*(one.sets for one in activities), strict=True)
            )
        )


def activity(
    model: ConvNet,
    images: Tensor,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Activity:
    """Measure it. The model is not changed.

    A set that several convolutions write counts the activity after each of them, averaged.

    Args:
        model: the base model.
        images: normalised, `[count, channels, H, W]`.

    Raises:
        DataError: there are no images.
    """
    if not len(images):
        raise DataError("no images to score filters on")
    convs = model.architecture.convs
    active = [torch.zeros(model.architecture.filters(conv), dtype=torch.float64) for conv in convs]
    seen = [0] * len(convs)

    def count(index: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
            # Filters lie third from the end, whether or not time steps come first.
            positive = (output > 0).movedim(-3, 0).flatten(1)
            active[index] += positive.sum(dim=1).double()
            seen[index] += positive.shape[1]

        return hook

    modules, was_training = dict(model.named_modules()), model.training
    hooks = [modules[conv.active].register_forward_hook(count(index)) for index, conv in enumerate(convs)]
    batches = torch.split(images, batch_size)
    try:
        model.eval()
        with torch.inference_mode():
            for step, batch in enumerate(batches):
                model.forward_features(batch)
                progress(step + 1, len(batches))
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    sets = []
    for index in range(len(model.architecture.widths.filters)):
        shares = [active[i] / seen[i] for i, conv in enumerate(convs) if conv.writes == index]
        sets.append(torch.stack(shares).mean(dim=0))
    return Activity(tuple(sets))
