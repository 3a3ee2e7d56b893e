"""Augmented views of a training set: random, cheap, and the same wherever they are made again.

A *view* is the whole training set, each image changed by its own random draw. View `v` of a set depends only on
the seed and on `v`, so the base model's outputs on it are computed once and serve every sub-model, whose training
process makes the same view again instead of reading it from disk. (timm's own augmentations work on one PIL image
at a time: as slow as the training of a sub-model itself. Its mix-up and CutMix work on batches, and mix within the
batch: a view has to be the same whatever batches it is made in.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from edvit.builder.train.device import CPU, TorchDevice

if TYPE_CHECKING:
    from edvit.builder.images import ImageSet
    from edvit.builder.unlabelled import WithUnlabelled


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random draw. All zero, and no flip, is the identity."""

    flip: bool = False
    """Mirror half of the images left to right. Wrong for digits and letters."""
    shift: float = 0.0
    """Largest translation in each direction, as a fraction of the image."""
    scale: float = 0.0
    """Zoom factor is drawn from 1 - scale to 1 + scale."""
    rotate: float = 0.0
    """Largest rotation, degrees."""
    colour: float = 0.0
    """Brightness and contrast factors are drawn from 1 - colour to 1 + colour."""

    @property
    def is_identity(self) -> bool:
        return self == Augmentation()

    def times(self, strength: float) -> Augmentation:
        """Every range so many times as wide; zoom and colour stay above 0."""
        return replace(
            self,
            shift=self.shift * strength,
            scale=min(self.scale * strength, max(self.scale, 0.9)),
            rotate=self.rotate * strength,
            colour=min(self.colour * strength, max(self.colour, 1.0)),
        )


NATURAL = Augmentation(flip=True, shift=0.125, scale=0.15, rotate=8.0, colour=0.25)
"""For photographs."""
GLYPHS = Augmentation(shift=0.06, scale=0.1, rotate=8.0)
"""For digits, letters and other images whose mirror image means something else."""

SPECTROGRAMS = Augmentation(shift=0.08, scale=0.1, colour=0.2)
"""For sounds: later or earlier, higher or lower, faster or slower, louder or softer."""


UNLABELLED = -100
"""The label of a mixed image, which has none; `torch.nn.functional.cross_entropy` ignores it."""


@dataclass(frozen=True)
class Views:
    """Makes batches of any view of one training set.

    Attributes:
        images: the training set.
        augmentation: the ranges.
        seed: of the draws.
        mix: share of a view's images that are mixed with another image of the view: half of them get a rectangle of it
            (CutMix, arXiv 1905.04899), half are averaged with it (mix-up, arXiv 1710.09412). Only a teacher can say
            what they are.
    """

    images: ImageSet | WithUnlabelled
    augmentation: Augmentation
    seed: int
    mix: float = 0.0

    def labels(self, view: int) -> npt.NDArray[np.int64]:
        """Labels of a view, int64 `[n]`; `UNLABELLED` where an image is mixed."""
        if not self.mix:
            return self.images.labels
        return np.where(self._mixing(view)[:, 0] < self.mix, UNLABELLED, self.images.labels)

    def batch(self, view: int, index: np.ndarray, device: TorchDevice = CPU) -> torch.Tensor:
        """Images `index` of view `view`: float32 `[len(index), channels, height, width]` on a scale of 0 to 255.

        They are made on the device that uses them: a GPU would wait for a CPU that makes them.
        """
        pixels = self._changed(view, index, device)
        if not self.mix:
            return pixels
        draws = self._mixing(view)[index]
        mixed = np.flatnonzero(draws[:, 0] < self.mix)
        if not len(mixed):
            return pixels
        partners = (draws[mixed, 1] * len(self.images)).astype(np.int64)
        others = self._changed(view, partners, device)
        weight = _share_of_other(device.move(torch.from_numpy(draws[mixed, 2:]).float()), *pixels.shape[-2:])
        rows = device.move(torch.from_numpy(mixed))
        pixels[rows] += weight * (others - pixels[rows])
        return pixels

    def _changed(self, view: int, index: np.ndarray, device: TorchDevice) -> torch.Tensor:
        """The batch before any image is mixed."""
        pixels = device.move(torch.from_numpy(self.images.pixels(index))).float()
        if self.augmentation.is_identity:
            return pixels
        return _transform(pixels, device.move(torch.from_numpy(self._draws(view)[index])), self.augmentation)

    def _draws(self, view: int) -> np.ndarray:
        """Uniform draws in [-1, 1), float32 `[n, 7]`: one row an image, whatever batch it comes in."""
        rng = np.random.default_rng((self.seed, view))
        return rng.uniform(-1.0, 1.0, size=(len(self.images), 7)).astype(np.float32)

    def _mixing(self, view: int) -> np.ndarray:
        """Uniform draws in [0, 1), float64 `[n, 6]`: whether, with which, how, by how much, where (x, y)."""
        return np.random.default_rng((self.seed, view, 1)).uniform(size=(len(self.images), 6))


def _share_of_other(draws: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """How much of each pixel is the other image's, float32 `[n, 1, height, width]`; of draws `[n, 4]`."""
    pasted, share, *centre = draws.T[..., None, None, None]
    across, down = (((torch.arange(side) + 0.5) / side).to(draws.device) for side in (width, height))
    x, y = (
        (line - middle).abs() < share.sqrt() / 2 for line, middle in zip((across, down[:, None]), centre, strict=True)
    )
    return torch.where(pasted < 0.5, (x & y).float(), share.expand(-1, 1, height, width))


def _transform(pixels: torch.Tensor, draws: torch.Tensor, how: Augmentation) -> torch.Tensor:
    flip, dx, dy, zoom, turn, brightness, contrast = draws.unbind(1)
    angle = turn * (how.rotate * torch.pi / 180)
    zoom = 1 + zoom * how.scale
    mirror = (1 - 2 * (flip < 0).float()) if how.flip else torch.ones_like(flip)
    # Rows of the affine map from output to input coordinates, which run from -1 to 1 along either side: where the sides
    # differ, a step of one down is not as long as a step of one across, and a rotation has to keep lengths.
    tall = pixels.shape[-2] / pixels.shape[-1]
    row_x = torch.stack([mirror * angle.cos() / zoom, -angle.sin() / zoom * tall, 2 * dx * how.shift], dim=1)
    row_y = torch.stack([mirror * angle.sin() / zoom / tall, angle.cos() / zoom, 2 * dy * how.shift], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if how.colour:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        contrast = (1 + contrast * how.colour)[:, None, None, None]
        brightness = (1 + brightness * how.colour)[:, None, None, None]
        pixels = (((pixels - mean) * contrast + mean) * brightness).clamp(0, 255)
    return pixels
