"""What a sub-model's output loses by what is cut where: the stream's directions, the heads' components, FFN units.

The loss of a cut is the KL divergence of the output to second order, `1/2 E[(g' delta)^2]`: `delta` is what is missing
somewhere in the model, `g` the gradient of a sampled `log p(y|x)` there. It is one unit for every stage, nats per
image, so they can be weighed against each other, and the model's own scale is in it: what is written to a large
stream has a small gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.subspace import attention, forward, rotation
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.group import Options
from edvit.builder.subspace.refit import penalised_cholesky
from edvit.builder.subspace.statistics import Sums, drawn
from edvit.builder.vit import backbone
from edvit.builder.vit.memory import activation_bytes
from edvit.errors import BuildError, ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Fitted. DeiT-Tiny on CIFAR-10, two class groups, one stage cut alone and refitted, at 4 or 5 widths each: the KL
# divergence on validation images is about 1.7 (stream), 3.3 (heads) and 2.2 (units) times the plain estimate.
HEADS = 2.0
"""What a loss in the heads counts, relative to one in the stream."""
UNITS = 1.3
"""What a loss in the FFN units counts, relative to one in the stream."""
SHARED = 0.3
"""Share of a block's curve that is the mean of all blocks: later blocks make good what earlier ones lose, for which
they need more width than their own loss says. Fitted likewise, to accuracy."""

GRAPH_BYTES = 2 * 1024**3
"""What the images of one pass may keep in memory for the way back: for a ViT-L two of them, for a DeiT-Tiny dozens."""


@dataclass(frozen=True)
class Losses:
    """What the output loses by what is kept of one part of the model, nats per image, float64.

    Entry `w` of a curve is the loss where the first `w` components are kept, in the order in which `cut.cut` keeps
    them; the last is 0. The losses of several parts add up.
    """

    stream: Floats
    """`[dim + 1]`, directions of the residual stream."""
    heads: Floats
    """`[blocks, head_dim + 1]`, components of queries, keys and values in every head of the block."""
    units: Floats
    """`[blocks, hidden + 1]`, FFN units."""


@dataclass(frozen=True)
class _Factors:
    """A vector as a sum over components, in the order in which they are kept: `x = sum_j (x @ read)_j back_j`."""

    read: Tensor
    """`[..., width, width]`"""
    back: Tensor
    """`[..., width, width]`"""

    def effects(self, x: Tensor, gradient: Tensor) -> Tensor:
        """What the output loses to first order without each component, `[..., width]`."""
        return (x @ self.read) * (gradient @ self.back.mT)

    def __getitem__(self, index: int) -> _Factors:
        return _Factors(self.read[index], self.back[index])


@dataclass(frozen=True)
class _Parts:
    """What is cut, and its means: a layer's bias makes good the mean of what is missing from its inputs."""

    stream: _Factors
    logits: _Factors
    """Factors of the queries, `[blocks, heads, head_dim, head_dim]`."""
    outputs: _Factors
    """Factors of the heads' outputs, `[blocks, heads, head_dim, head_dim]`."""
    output_mean: Tensor
    """`[blocks, heads, 1, head_dim]`"""
    unit_order: Tensor
    """`[blocks, hidden]`"""
    unit_mean: Tensor
    """`[blocks, hidden]`"""


def estimate_losses(
    base: VisionTransformer,
    sums: Sums,
    calibration: Calibration,
    rows: Ints,
    weights: Tensor,
    *,
    fisher: float | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """One forward and backward pass over the calibration images of a class group.

    What is missing without one component is multiplied by the gradient at each token and summed over the tokens of an
    image, for a direction of the stream over the norms too: it is missing everywhere at once. The squares of different
    components are added as if their signs were independent. What refits make good is taken off as far as it is known
    beforehand: means, and the best linear guess at cut directions from kept ones.

    Args:
        base: what `rms.to_rms` returned.
        sums: of the group, one bin.
        calibration: the images.
        rows: which of them, `[n]`, as `cut.group_rows` gives them.
        weights: likewise, float64 `[n]`.
        fisher: as in `cut.Options`; needs sums with gradients.
        seed: of the sampled `y`.
        checkpoint: keeps the sums so far; the result is the same to the last bit.
        progress: called with images done, and of how many.

    Raises:
        BuildError: the base is not converted, or statistics or gradients are NaN or infinite.
        ConfigError: `fisher` is given and the statistics are without gradients.
        DataError: there are no images, or not of the base's shape.
    """
    architecture = backbone.describe(base)
    if not architecture.rotated:
        raise BuildError("losses are of a converted base model; call rms.to_rms first")
    if not all(bool(getattr(sums, f.name).isfinite().all()) for f in fields(sums)) or float(sums.images[0]) == 0.0:
        raise BuildError("the statistics are empty, NaN or infinite")
    if fisher is not None and sums.gradient.shape[-1] == 0:
        raise ConfigError("these are statistics without gradients: no Fisher-weighted rotation")
    calibration.check(architecture.channels, architecture.image_size)
    parts = _parts(base, sums, fisher, architecture.tokens)
    generator = torch.Generator("cpu").manual_seed(seed)
    share = (weights / weights.sum()).double()
    squares: list[Tensor] = []
    done = 0
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        done, squares = state["images"], [square.to(base.head.weight.device) for square in state["squares"]]
        generator.set_state(state["drawn"])
        progress(done, len(rows))
    at_once = max(1, min(calibration.batch_size, GRAPH_BYTES // activation_bytes(architecture)))
    for batch, images in replace(calibration, batch_size=at_once).batches(rows[done:]):
        part = share[done : done + len(batch)]
        of_batch = [
            torch.einsum("n,n...->...", part, square) for square in _squared_effects(base, images, parts, generator)
        ]
        squares = [a + b for a, b in zip(squares, of_batch, strict=True)] if squares else of_batch
        done += len(batch)
        progress(done, len(rows))
        if checkpoint is not None and checkpoint.due:
            state = {"images": done, "squares": squares, "drawn": generator.get_state()}
            checkpoint.save(state, done, len(rows))
    if not all(bool(square.isfinite().all()) for square in squares):
        raise BuildError("the base model's gradients are NaN or infinite on the calibration images")
    stream, heads, units = (_curves(0.5 * square.cpu().numpy()) for square in squares)
    return Losses(stream, HEADS * _shared(heads), UNITS * _shared(units))


def _curves(losses: Floats) -> Floats:
    """`[..., width + 1]` of the losses of single components, `[..., width]`: all those after the first `w`."""
    none = np.zeros_like(losses[..., :1])
    return np.concatenate([np.cumsum(losses[..., ::-1], axis=-1)[..., ::-1], none], axis=-1)


def _shared(curves: Floats) -> Floats:
    """Curves `[blocks, width + 1]`, each drawn towards their mean."""
    shared: Floats = (1 - SHARED) * curves + SHARED * curves.mean(axis=0)
    return shared


def _squared_effects(
    base: VisionTransformer, images: Tensor, parts: _Parts, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared effects by image and component, float64: `[n, dim]`, `[n, blocks, head_dim]`, `[n, blocks, hidden]`."""
    normals: list[Tensor] = []
    inside: list[Tensor] = []
    with torch.enable_grad():
        stream = backbone.embed(base, images).detach().requires_grad_()
        for block in base.blocks:
            normals.append(block.norm1(stream))
            heads = forward.heads(block, normals[-1])
            stream = stream + block.attn.proj(forward.side_by_side(heads.output))
            normals.append(block.norm2(stream))
            units = forward.hidden(block, normals[-1])
            stream = stream + block.mlp.fc2(units)
            inside += [heads.query, heads.output, units]
        normal = base.norm(stream)
        feature = base.forward_head(normal, pre_logits=True)
        normals.append(feature if isinstance(base.norm, torch.nn.Identity) else normal)
        log_p = base.head(feature).log_softmax(dim=-1)
        gradients = torch.autograd.grad(drawn(log_p, generator).sum(), [*normals, *inside])
    of_normals, of_inside = gradients[: len(normals)], gradients[len(normals) :]
    with torch.no_grad():
        in_stream = sum(_per_image(parts.stream.effects(x, g)) for x, g in zip(normals, of_normals, strict=True))
        in_heads, in_units = [], []
        for i in range(len(base.blocks)):
            (query, output, units), (to_query, to_output, to_units) = (
                x[3 * i : 3 * i + 3] for x in (inside, of_inside)
            )
            of_logits = parts.logits[i].effects(query, to_query).sum(dim=2)
            of_values = parts.outputs[i].effects(output - parts.output_mean[i], to_output).sum(dim=2)
            in_heads.append((of_logits.double().square() + of_values.double().square()).sum(dim=1))
            effect = _per_image((units - parts.unit_mean[i]) * to_units)
            in_units.append(effect[:, parts.unit_order[i]].double().square())
    return torch.as_tensor(in_stream).double().square(), torch.stack(in_heads, dim=1), torch.stack(in_units, dim=1)


def _per_image(effect: Tensor) -> Tensor:
    """Summed over tokens, if there are any left: `[n, tokens, width]` or `[n, width]` to `[n, width]`."""
    return effect.flatten(1, -2).sum(dim=1) if effect.dim() > 2 else effect


def _parts(base: VisionTransformer, sums: Sums, fisher: float | None, tokens: int) -> _Parts:
    blocks = list(base.blocks)
    every = sums.images[0] * tokens
    mean = sums.output_mean[0] / every
    covariance = sums.output[0] / every - mean[..., :, None] * mean[..., None, :]
    writer = torch.stack([b.attn.proj.weight.detach().double().T.unflatten(0, mean.shape[1:]) for b in blocks])
    unit_mean = sums.unit_mean[0] / sums.tokens[0, :, None]
    energy = sums.unit[0] / sums.tokens[0, :, None] - unit_mean.square()
    energy = energy * torch.stack([b.mlp.fc2.weight.detach().double().square().sum(dim=0) for b in blocks])
    if isinstance(blocks[0].attn.q_norm, torch.nn.Identity):
        logits = _factors(sums.query[0], sums.key[0])
    else:
        logits = _chosen(sums.query[0], sums.key[0])
    return _Parts(
        stream=_single(_stream_factors(sums, fisher)),
        logits=_single(logits),
        outputs=_single(_factors(covariance, writer @ writer.mT)),
        output_mean=mean.float()[:, :, None],
        unit_order=energy.argsort(dim=-1, descending=True, stable=True),
        unit_mean=unit_mean.float(),
    )


def _stream_factors(sums: Sums, fisher: float | None) -> _Factors:
    """Directions as `rotation.leading` keeps them, less the best linear guess at each from those before it.

    With the stream's moment `Q' S Q = L L'`, what `d` directions lose of `x` is `sum_(j >= d) (L^-1 Q' x)_j Q L_j`.
    """
    moment = sums.stream[0]
    if fisher is None:
        basis = rotation.leading(moment, len(moment))
    else:
        basis = rotation.leading(moment, len(moment), sums.gradient[0], fisher)
    inside = basis.T @ moment @ basis
    factor = penalised_cholesky(inside, Options.reader_ridge * float(inside.diagonal().mean()))
    if factor is None:
        raise BuildError("the stream's statistics are zero")
    return _Factors(torch.linalg.solve_triangular(factor, basis.T, upper=False).T, (basis @ factor).T)


def _factors(moment: Tensor, other: Tensor) -> _Factors:
    """As `attention.logit_maps` and `value_maps` keep them: in the basis of `svd(C^(1/2) M^(1/2))`, `[..., d, d]`."""
    root, inverse = attention.roots(moment)
    u = torch.linalg.eigh(root @ other @ root)[1].flip(-1)
    return _Factors(inverse @ u, u.mT @ root)


def _chosen(query: Tensor, key: Tensor) -> _Factors:
    """Single dimensions as `attention.chosen_logit_dims` keeps them, the same in every head of a block."""
    energy = (query.diagonal(dim1=-2, dim2=-1) * key.diagonal(dim1=-2, dim2=-1)).sum(dim=1)
    order = energy.argsort(dim=-1, descending=True, stable=True)
    read = torch.eye(query.shape[-1], dtype=query.dtype)[order].mT[:, None].expand_as(query)
    return _Factors(read, read.mT)


def _single(factors: _Factors) -> _Factors:
    return _Factors(factors.read.float(), factors.back.float())
