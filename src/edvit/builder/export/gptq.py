"""A matrix of weights in four bits: rounded to nearest, or so that its outputs change least (GPTQ).

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds one input's weights after the other, and moves the weights that are
not rounded yet so that they make up for it on the calibration inputs. A weight is a scale of its output's, times a
multiplier of its block of inputs, times a code (`edvit.runtime.engine.four_bits`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edvit.errors import BuildError
from edvit.runtime.engine.four_bits import (
    BLOCK,
    LEAST_CODE,
    MOST_CODE,
    MOST_MULTIPLIER,
    PackedMatrix,
    UInt8,
    blocks_of,
)

DAMPING = 0.01
"""What is added to the diagonal of a Hessian, relative to its mean."""
SCALES = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Tried scales of an output, relative to the one that clips no weight."""
NEARBY = (0, 1, 2, 3)
"""How much smaller than the multiplier that clips no weight a tried one is."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FourBits:
    """A matrix in four bits.

    Attributes:
        packed: its codes and multipliers.
        scale: float32 `[outputs]`, not negative.
    """

    packed: PackedMatrix
    scale: npt.NDArray[np.float32]

    def values(self) -> npt.NDArray[np.float32]:
        """The weights that it stands for, float32 `[inputs, outputs]`."""
        return self.packed.whole() * self.scale


def nearest(weights: Float64, importance: Float64) -> FourBits:
    """Each weight rounded to the nearest that the scales allow.

    Args:
        weights: `[inputs, outputs]`.
        importance: of each input for the choice of scales, `[inputs]`, not negative.
    """
    scale = _scale(weights, importance)
    multipliers = np.stack([_multipliers(*block, scale) for block in _blocks(weights, importance)])
    steps = np.repeat(multipliers, BLOCK, axis=0)[: len(weights)] * scale
    return FourBits(PackedMatrix(_codes(weights, steps), multipliers), scale.astype(np.float32))


def gptq(weights: Float64, hessian: Float64) -> FourBits:
    """Rounded so that the squared error of the outputs on the calibration inputs is small.

    An output whose error is larger than with weights rounded to nearest has these instead; so has an input that
    calibration never used.

    Args:
        weights: `[inputs, outputs]`.
        hessian: the sum over calibration inputs `x` of `x xᵀ`, `[inputs, inputs]`; its scale does not matter.

    Raises:
        BuildError: the Hessian is not finite.
    """
    used = np.diag(hessian)
    mean = used.mean()
    if not np.isfinite(hessian).all():
        raise BuildError("a sub-model's activations on the calibration images are not finite; use --precision fp32")
    if mean == 0:
        return nearest(weights, np.ones(len(weights)))
    damped = hessian / mean + DAMPING * np.eye(len(weights))
    rounded = nearest(weights, np.diag(damped))
    moved = _refitted(_in_order(weights, damped, rounded.scale.astype(np.float64)), weights, damped)
    worse = error(weights, moved, damped) > error(weights, rounded, damped)
    packed = PackedMatrix(
        np.where(worse, rounded.packed.codes, moved.packed.codes),
        np.where(worse, rounded.packed.multipliers, moved.packed.multipliers),
    )
    return FourBits(packed, np.where(worse, rounded.scale, moved.scale))


def error(weights: Float64, found: FourBits, hessian: Float64) -> Float64:
    """The squared error of each output over the inputs that the Hessian sums up, `[outputs]`."""
    difference = weights - found.values()
    result: Float64 = np.einsum("io,io->o", difference, hessian @ difference)
    return result


def _in_order(weights: Float64, hessian: Float64, scale: Float64) -> FourBits:
    """GPTQ's loop over the inputs, with the scale of each output given."""
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = weights.copy()
    importance = np.diag(hessian)
    codes = np.empty(weights.shape, np.int8)
    multipliers = np.empty((blocks_of(len(weights)), weights.shape[1]), np.uint8)
    for number in range(len(multipliers)):
        start, end = number * BLOCK, min((number + 1) * BLOCK, len(weights))
        multipliers[number] = _multipliers(left[start:end], importance[start:end], scale)
        step = multipliers[number] * scale
        errors = np.empty((end - start, weights.shape[1]))
        for row in range(start, end):
            codes[row] = _codes(left[row], step)
            errors[row - start] = (left[row] - codes[row] * step) / upper[row, row]
            left[row:end] -= np.outer(upper[row, row:end], errors[row - start])
        left[end:] -= upper[start:end, end:].T @ errors  # the later blocks at once, which is faster
    return FourBits(PackedMatrix(codes, multipliers), scale.astype(np.float32))


def _refitted(found: FourBits, weights: Float64, hessian: Float64) -> FourBits:
    """The scales with the least error for the codes and multipliers that were chosen."""
    whole = found.packed.whole().astype(np.float64)
    through = hessian @ whole
    size = np.einsum("io,io->o", whole, through)
    fit = np.einsum("io,io->o", weights, through) / np.where(size > 0, size, 1)
    return FourBits(found.packed, np.where(fit > 0, fit, found.scale).astype(np.float32))


def _scale(weights: Float64, importance: Float64) -> Float64:
    """The scale of each output with the least error when weights are rounded to nearest; 0 where all are 0."""
    outputs = weights.shape[1]
    blocks = list(_blocks(weights, importance))
    whole = np.max([_unclipped(block) for block, _ in blocks], axis=0) / MOST_MULTIPLIER
    best, least = whole.copy(), np.full(outputs, np.inf)
    for factor in SCALES:
        scale, loss = factor * whole, np.zeros(outputs)
        for block, of_block in blocks:
            loss += _loss(block, of_block, _multipliers(block, of_block, scale) * scale)
        better = loss < least
        best[better], least[better] = scale[better], loss[better]
    # As it will be stored, so that what is rounded fits it.
    stored: Float64 = best.astype(np.float32).astype(np.float64)
    return stored


def _multipliers(block: Float64, importance: Float64, scale: Float64) -> UInt8:
    """The multiplier of each output in a block with the least error when rounded to nearest, uint8 `[outputs]`."""
    whole = np.ceil(_unclipped(block) / np.where(scale > 0, scale, 1))
    best, least = np.ones(block.shape[1]), np.full(block.shape[1], np.inf)
    for smaller in NEARBY:
        tried = np.clip(whole - smaller, 1, MOST_MULTIPLIER)
        loss = _loss(block, importance, tried * scale)
        better = loss < least
        best[better], least[better] = tried[better], loss[better]
    return best.astype(np.uint8)


def _loss(block: Float64, importance: Float64, step: Float64) -> Float64:
    loss: Float64 = importance @ (block - _codes(block, step) * step) ** 2
    return loss


def _unclipped(block: Float64) -> Float64:
    """The step of each output with which no weight of a block is clipped."""
    step: Float64 = np.maximum(block.max(axis=0) / MOST_CODE, block.min(axis=0) / LEAST_CODE).clip(0)
    return step


def _codes(weights: Float64, step: Float64) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(weights / np.where(step > 0, step, 1)), LEAST_CODE, MOST_CODE).astype(np.int8)


def _blocks(weights: Float64, importance: Float64) -> list[tuple[Float64, Float64]]:
    starts = range(0, len(weights), BLOCK)
    return [(weights[start : start + BLOCK], importance[start : start + BLOCK]) for start in starts]
