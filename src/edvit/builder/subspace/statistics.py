"""What one pass of the base model says of each class: sums that add up to those of any class group.

Every sum is float64 and additive over images, so a group's statistics are a weighted sum of its classes' and of the
others'. No token outlives its batch.

A token that nobody reads is not counted: of the last block's FFN and of the last norm, only the pooled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.subspace import forward
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError
from edvit.shape.vit import Architecture
from edvit.units import counted

SUMS_LIMIT_BYTES = 2 * 1024**3
"""Beyond this, statistics must be collected by class group rather than by class."""


@dataclass(frozen=True)
class Sums:
    """Sums over the images of each bin (a class, or a group of classes); float64."""

    images: Tensor
    """`[bins]`, how many."""
    stream: Tensor
    """`[bins, dim, dim]`, second moment `x x'` of the normalised stream, over every norm and token."""
    query: Tensor
    """`[bins, blocks, heads, head_dim, head_dim]`, second moment of the queries."""
    key: Tensor
    """As `query`, of the keys less their mean over the image's tokens: softmax does not see that mean."""
    output: Tensor
    """As `query`, of the heads' outputs."""
    output_mean: Tensor
    """`[bins, blocks, heads, head_dim]`, sum of the heads' outputs."""
    unit: Tensor
    """`[bins, blocks, hidden]`, sum of squares of the FFN units."""
    unit_mean: Tensor
    """`[bins, blocks, hidden]`, sum of the FFN units."""
    tokens: Tensor
    """`[bins, blocks]`, tokens behind `unit`."""
    embedding: Tensor
    """As `stream`, before block 0 of a model with a norm there; `[bins, 0, 0]` of others."""
    gradient: Tensor
    """`[bins, dim, dim]`, second moment of the gradient of a sampled `log p(y|x)` with respect to the normalised
    stream; `[bins, 0, 0]` unless asked for."""

    @property
    def bins(self) -> int:
        return len(self.images)

    def weighted(self, weights: Tensor) -> Sums:
        """One bin: the sum over bins, each times its weight `[bins]`."""
        w = weights.double()
        return Sums(**{f.name: torch.einsum("n,n...->...", w, getattr(self, f.name))[None] for f in fields(self)})

    def tensors(self) -> dict[str, Tensor]:
        """All of them by their names."""
        return {f.name: getattr(self, f.name).contiguous() for f in fields(self)}

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file(self.tensors(), path)

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Read what `save` wrote.

        Raises:
            BuildError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return cls(**{f.name: file.get_tensor(f.name) for f in fields(cls)})
        except (OSError, SafetensorError) as error:
            raise BuildError(f"{path}: no readable statistics ({type(error).__name__}); remove it") from None


def collect(
    base: VisionTransformer,
    calibration: Calibration,
    bins: Sequence[int] | None = None,
    *,
    gradients: bool = False,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sums:
    """One pass of the base model over the calibration images.

    Args:
        base: what `rms.to_rms` returned.
        bins: the bin of every image, `[n]`; its class by default. Fewer bins take less memory, `sums_bytes`.
        gradients: also `Sums.gradient`, for a Fisher-weighted rotation; takes a backward pass as well.
        seed: of the sampled `y`.
        checkpoint: keeps the sums so far; the result is the same to the last bit.
        progress: called with images done, and of how many.

    Raises:
        BuildError: the base is not converted, or its activations are NaN or infinite.
        ConfigError: the sums would pass `SUMS_LIMIT_BYTES`.
        DataError: there are no images, or not of the base's shape.
    """
    architecture = backbone.describe(base)
    if not architecture.rotated:
        raise BuildError("statistics are of a converted base model; call rms.to_rms first")
    calibration.check(architecture.channels, architecture.image_size)
    of_image = np.asarray(calibration.labels if bins is None else bins)
    count = max(int(of_image.max()) + 1, architecture.classes if bins is None else 0)
    check_size(architecture, count, gradients=gradients)
    sums = _zeros(architecture, count, gradients=gradients)
    generator = torch.Generator("cpu").manual_seed(seed)
    done = begun = 0
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        begun = state["images"]
        for name, value in state["sums"].items():
            getattr(sums, name).copy_(value)
        generator.set_state(state["drawn"])
        progress(begun, len(of_image))
    for index in np.unique(of_image):
        into = Sums(**{f.name: getattr(sums, f.name)[index] for f in fields(sums)})
        of_bin = np.flatnonzero(of_image == index)
        counted_before = min(begun - done, len(of_bin)) if done < begun else 0  # whole batches, or all of them
        done += counted_before
        for rows, images in calibration.batches(of_bin[counted_before:]):
            with torch.set_grad_enabled(gradients):
                normals, logits = _add_pass(base, images, into)
            if gradients:
                _add_gradients(normals, logits, into, generator)
            into.images.add_(len(rows))
            done += len(rows)
            progress(done, len(of_image))
            if checkpoint is not None and checkpoint.due:
                state = {"images": done, "sums": sums.tensors(), "drawn": generator.get_state()}
                checkpoint.save(state, done, len(of_image))
    if not all(bool(getattr(sums, f.name).isfinite().all()) for f in fields(sums)):
        raise BuildError("the base model's activations are NaN or infinite on the calibration images")
    return sums


def check_size(architecture: Architecture, bins: int, *, gradients: bool = False) -> None:
    """Raise ConfigError where sums of so many bins would pass `SUMS_LIMIT_BYTES`."""
    needed = sums_bytes(architecture, bins, gradients=gradients)
    if needed > SUMS_LIMIT_BYTES:
        most = int(SUMS_LIMIT_BYTES / needed * bins)
        fewer = f"split into at most {counted(most, 'group')}, or " if most else ""
        raise ConfigError(
            f"statistics of {counted(bins, 'class group')} take {needed / 1024**3:.1f} GiB, the limit is "
            f"{SUMS_LIMIT_BYTES / 1024**3:.0f}; {fewer}give --prune channels"
        )


def sums_bytes(architecture: Architecture, bins: int, *, gradients: bool = False) -> int:
    """Memory of `Sums`."""
    sums = _zeros(architecture, bins, gradients=gradients, device="meta")
    return sum(getattr(sums, f.name).numel() * 8 for f in fields(sums))


def _zeros(architecture: Architecture, bins: int, *, gradients: bool, device: str | None = None) -> Sums:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(bins, *shape, dtype=torch.float64, device=device)

    dim, blocks, width = architecture.widths.dim, len(architecture.widths.blocks), architecture.widths.blocks[0]
    per_head = (blocks, width.heads, width.head_dim)
    before = dim if architecture.pre_norm else 0
    return Sums(
        images=zeros(),
        stream=zeros(dim, dim),
        query=zeros(*per_head, width.head_dim),
        key=zeros(*per_head, width.head_dim),
        output=zeros(*per_head, width.head_dim),
        output_mean=zeros(*per_head),
        unit=zeros(blocks, width.hidden),
        unit_mean=zeros(blocks, width.hidden),
        tokens=zeros(blocks),
        embedding=zeros(before, before),
        gradient=zeros(dim, dim) if gradients else zeros(0, 0),
    )


def _add_pass(base: VisionTransformer, images: Tensor, into: Sums) -> tuple[list[Tensor], Tensor]:
    """Add a batch's forward pass; the normalised streams and the logits, for a backward pass."""
    normals: list[Tensor] = []

    def read(normal: Tensor, seen: Tensor) -> Tensor:
        into.stream.add_(second_moment(seen))
        normals.append(normal)
        return normal

    if forward.has_pre_norm(base):
        into.embedding.add_(second_moment(base.norm_pre.norm(backbone.before_pre_norm(base, images))))
    stream = backbone.embed(base, images)
    last = len(base.blocks) - 1
    for i, block in enumerate(base.blocks):
        normal = block.norm1(stream)
        attention = forward.heads(block, read(normal, normal))
        _add_heads(attention, into, i)
        stream = stream + block.attn.proj(forward.side_by_side(attention.output))
        normal = block.norm2(stream)
        units = forward.hidden(block, read(normal, forward.pooled(base, normal) if i == last else normal))
        _add_units(forward.pooled(base, units) if i == last else units, into, i)
        stream = stream + block.mlp.fc2(units)
    if not isinstance(base.norm, torch.nn.Identity):
        normal = base.norm(stream)
        feature = base.forward_head(read(normal, forward.pooled(base, normal)), pre_logits=True)
    else:
        feature = backbone.read_by_head(base, stream)
        feature = read(feature, feature)
    return normals, base.head(feature)


def _add_heads(attention: forward.Heads, into: Sums, block: int) -> None:
    query, key, output = (part.detach().double() for part in (attention.query, attention.key, attention.output))
    key = key - key.mean(dim=2, keepdim=True)
    into.query[block].add_(torch.einsum("nhtd,nhte->hde", query, query))
    into.key[block].add_(torch.einsum("nhtd,nhte->hde", key, key))
    into.output[block].add_(torch.einsum("nhtd,nhte->hde", output, output))
    into.output_mean[block].add_(output.sum(dim=(0, 2)))


def _add_units(units: Tensor, into: Sums, block: int) -> None:
    flat = units.detach().double().flatten(0, 1)
    into.unit[block].add_(flat.square().sum(dim=0))
    into.unit_mean[block].add_(flat.sum(dim=0))
    into.tokens[block].add_(len(flat))


def _add_gradients(normals: list[Tensor], logits: Tensor, into: Sums, generator: torch.Generator) -> None:
    log_p = logits.log_softmax(dim=-1)
    gradients = torch.autograd.grad(drawn(log_p, generator).sum(), normals)
    for gradient in gradients:
        into.gradient.add_(second_moment(gradient))


def drawn(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """`log p` of a class drawn for each image, `[n, 1]` of `[n, classes]`; on a GPU the one that the CPU draws."""
    p = log_p.detach().exp().nan_to_num(1.0).cpu()
    return log_p.gather(1, torch.multinomial(p, 1, generator=generator).to(log_p.device))


def second_moment(rows: Tensor) -> Tensor:
    """`sum x x'` over all but the last axis, float64 `[dim, dim]`."""
    flat = rows.detach().double().reshape(-1, rows.shape[-1])
    return flat.T @ flat
