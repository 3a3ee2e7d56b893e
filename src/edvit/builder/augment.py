"""Augmented views of a training set: random, cheap, and the same wherever they are made again.

A *view* is the whole training set, each image changed by its own random draw. View `v` of a set depends only on
the seed and on `v`, so the base model's outputs on it are computed once and serve every sub-model, whose training
process makes the same view again instead of reading it from disk. (timm's own augmentations work on one PIL image
at a time: as slow as the training of a sub-model itself. Its mix-up works on batches, pairing what happens to be in
one; here the partner of an image is part of its draw, so that the base model's outputs on the pair can be kept.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from edvit.builder.images import ImageSet


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
    mix: float = 0.0
    """Share of the images that are mixed with another, which gets up to half: half of them as a whole (mix-up,
    arXiv 1710.09412), half by a box (CutMix, arXiv 1905.04899)."""

    @property
    def is_identity(self) -> bool:
        return self == Augmentation()


MIX_STREAM = 1
"""Keeps the draw of partners apart from the other draws of a view."""

NATURAL = Augmentation(flip=True, shift=0.125, scale=0.15, rotate=8.0, colour=0.25)
"""For photographs."""
GLYPHS = Augmentation(shift=0.06, scale=0.1, rotate=8.0)
"""For digits, letters and other images whose mirror image means something else."""


@dataclass(frozen=True)
class Mix:
    """Which images of a view are mixed with which.

    Attributes:
        partner: int64 `[n]`.
        share: float32 `[n]`, what is the image's own: from 0.5 to 1.
        cut: bool `[n]`, whether the partner shows in a box, not all over.
        corner: float32 `[n, 2]`, where the box lies, from 0 to 1 of the room there is.
    """

    partner: np.ndarray
    share: np.ndarray
    cut: np.ndarray
    corner: np.ndarray


class Views:
    """Makes batches of any view of one training set.

    Args:
        images: the training set.
        augmentation: the ranges.
        seed: of the draws.
    """

    def __init__(self, images: ImageSet, augmentation: Augmentation, seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def batch(self, view: int, index: np.ndarray) -> torch.Tensor:
        """Images `index` of view `view`: float32 `[len(index), channels, size, size]` on a scale of 0 to 255."""
        pixels = self._unmixed(view, index)
        if not self.augmentation.mix:
            return pixels
        mix = self.mix(view)
        mixed = np.flatnonzero(mix.share[index] < 1)
        rows = index[mixed]
        if len(rows):
            weight = torch.from_numpy(_own_weight(mix, rows, pixels.shape[-1]))
            pixels[mixed] = weight * pixels[mixed] + (1 - weight) * self._unmixed(view, mix.partner[rows])
        return pixels

    def mix(self, view: int) -> Mix:
        """Who is mixed with whom in view `view`."""
        n = len(self.images)
        rng = np.random.default_rng((self.seed, view, MIX_STREAM))
        share = np.where(rng.random(n) < self.augmentation.mix, rng.uniform(0.5, 1.0, n), 1.0)
        return Mix(
            partner=rng.integers(0, n, n),
            share=share.astype(np.float32),
            cut=rng.random(n) < 0.5,
            corner=rng.random((n, 2)).astype(np.float32),
        )

    def _unmixed(self, view: int, index: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(self.images.pixels(index)).float()
        if replace(self.augmentation, mix=0.0).is_identity:
            return pixels
        return _transform(pixels, torch.from_numpy(self._draws(view)[index]), self.augmentation)

    def _draws(self, view: int) -> np.ndarray:
        """Uniform draws in [-1, 1), float32 `[n, 7]`: one row an image, whatever batch it comes in."""
        rng = np.random.default_rng((self.seed, view))
        return rng.uniform(-1.0, 1.0, size=(len(self.images), 7)).astype(np.float32)


def _own_weight(mix: Mix, rows: np.ndarray, size: int) -> np.ndarray:
    """Weight of the own pixels, float32 `[rows, 1, size, size]`; its mean over an image is about the share."""
    share, at = mix.share[rows], np.arange(size)
    side = np.sqrt(1 - share) * size
    first = mix.corner[rows] * (size - side)[:, None]
    inside = (at >= first[..., None]) & (at < (first + side[:, None])[..., None])
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    weight: np.ndarray = np.where(mix.cut[rows, None, None], ~box, share[:, None, None]).astype(np.float32)
    return weight[:, None]


def _transform(pixels: torch.Tensor, draws: torch.Tensor, how: Augmentation) -> torch.Tensor:
    flip, dx, dy, zoom, turn, brightness, contrast = draws.unbind(1)
    angle = turn * (how.rotate * torch.pi / 180)
    zoom = 1 + zoom * how.scale
    mirror = torch.where(flip < 0, -1.0, 1.0) if how.flip else torch.ones_like(flip)
    # Rows of the affine map from output to input coordinates, which run from -1 to 1.
    row_x = torch.stack([mirror * angle.cos() / zoom, -angle.sin() / zoom, 2 * dx * how.shift], dim=1)
    row_y = torch.stack([mirror * angle.sin() / zoom, angle.cos() / zoom, 2 * dy * how.shift], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if how.colour:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        contrast = (1 + contrast * how.colour)[:, None, None, None]
        brightness = (1 + brightness * how.colour)[:, None, None, None]
        pixels = (((pixels - mean) * contrast + mean) * brightness).clamp(0, 255)
    return pixels
