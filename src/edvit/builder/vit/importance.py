"""How much the output distribution moves when a component is removed, for every component of a base model.

The measure is ED-ViT's (arXiv 2410.11650): over images of the group's own classes,
`I(c) = mean_x KL( p(.|x) || p_-c(.|x) )`. Four criteria give or stand in for it:

- `kl`: that, exactly. One forward pass of the images per component, from the component's block on.
- `fisher-kl`: its second-order term at gates of 1, where the first-order term is zero:
  `I(c) = 1/2 mean_x sum_y p(y|x) (d log p(y|x) / d g_c)^2`. One backward pass per class for all components, or one per
  random projection of the classes where there are many.
- `magnitude`: the Euclidean norm of every weight that reads or writes the component; sees no image.
- `random`: uniform; what a criterion has to beat.

"Removed" is what surgery does: norms take their statistics over the channels that are left (`edvit.builder.vit.gates`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.vit import backbone
from edvit.builder.vit.fisher import projected
from edvit.builder.vit.gates import BlockGates, Gates, gated, open_gates
from edvit.builder.vit.scores import Scores
from edvit.errors import BuildError, ConfigError, DataError
from edvit.shape.vit import Architecture

__all__ = ["Criterion", "Scores", "score"]

Criterion = Literal["fisher-kl", "kl", "magnitude", "random"]
UNSEEING = ("magnitude", "random")
"""Criteria that look at no image."""
Progress = Callable[[int, int], None]
"""Called with how many steps are done, and of how many."""

EXACT_CLASSES = 32
"""Up to so many classes, fisher-kl goes through every one of them; beyond, it projects them at random."""


def score(
    model: VisionTransformer,
    images: Tensor,
    *,
    criterion: Criterion = "fisher-kl",
    seed: int = 0,
    batch_size: int = 32,
    projections: int = 16,
    exact_heads: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Score every residual channel, attention dimension, head and FFN unit. The model is not changed.

    Computed on the model's device and in its dtype, accumulated in float64. Memory grows with `batch_size`, not with
    the number of images, classes or components.

    Args:
        model: the base model, with its head over all classes; the same widths in every block.
        images: normalised, `[count, channels, H, W]`, of the group's own classes.
        criterion: see the module.
        seed: of `random`, and of the projections of `fisher-kl`.
        batch_size: samples that go through the model at once.
        projections: with more than `EXACT_CLASSES` classes, `fisher-kl` takes so many random projections of the classes
            per image (`fisher.projected`) instead of summing over all: the same expectation; for one image, the
            standard deviation is at most `sqrt(2 / projections)` of it, and it falls with the number of images too.
        exact_heads: let `fisher-kl` score whole heads as `kl` does. A head is too large a step for a second-order term,
            and heads are few; set it where whole heads are to be pruned.
        progress: called after every step.

    Raises:
        DataError: there are no images, or not of the model's shape.
        ConfigError: an unknown criterion, or a batch size or number of projections below 1.
        BuildError: the model's weights or outputs are not finite, it has fewer than two classes, or its blocks differ.
    """
    architecture = backbone.describe(model)
    _check_model(model, architecture)
    if criterion not in get_args(Criterion):
        raise ConfigError(f"unknown criterion {criterion!r}; known: {', '.join(get_args(Criterion))}")
    if batch_size < 1 or projections < 1:
        raise ConfigError("batch_size and projections must be at least 1")
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    report = progress or (lambda _done, _total: None)
    if criterion == "random":
        return _random(architecture, seed)
    if criterion == "magnitude":
        return _magnitude(frozen, architecture)
    _check_images(images, architecture)
    batches = torch.split(images, batch_size)
    if criterion == "kl":
        every = range(len(_zeros(architecture)))
        return _assemble(_exact_kl(frozen, architecture, batches, every, batch_size=batch_size, report=report), "kl")
    steps = len(batches) * _passes(architecture, projections)
    heads = range(2, 2 + 3 * len(architecture.widths.blocks), 3) if exact_heads else range(0)
    every_step = steps + len(batches) * len(heads) * architecture.heads
    rows = _fisher_kl(
        frozen,
        architecture,
        batches,
        seed=seed,
        projections=projections,
        report=lambda done, _: report(done, every_step),
    )
    if exact_heads:
        exact = _exact_kl(
            frozen,
            architecture,
            batches,
            heads,
            batch_size=batch_size,
            report=lambda done, _: report(steps + done, every_step),
        )
        for row in heads:
            rows[row] = exact[row]
    return _assemble(rows, "fisher-kl")


def _check_model(model: VisionTransformer, architecture: Architecture) -> None:
    if any(block != architecture.widths.blocks[0] for block in architecture.widths.blocks):
        raise BuildError("only a base model can be scored, and this one's blocks differ in their widths")
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise BuildError(f"{name} holds NaN or infinite values; the model's training diverged")


def _check_images(images: Tensor, architecture: Architecture) -> None:
    if architecture.classes < 2:
        raise BuildError(f"a model of {architecture.classes} classes has no output distribution to score by")
    if len(images) == 0:
        raise DataError("no images to score on; every class group needs some")
    height, width = architecture.image_size
    if images.shape[1:] != (architecture.channels, height, width) or not images.is_floating_point():
        expected = f"[count, {architecture.channels}, {height}, {width}] of floating point"
        raise DataError(f"images to score on are {list(images.shape)} {images.dtype}, not {expected}")


# --- fisher-kl ---------------------------------------------------------------------------------------------


def _passes(architecture: Architecture, projections: int) -> int:
    """Backward passes per batch: one per class, or per projection where there are many."""
    return architecture.classes if architecture.classes <= EXACT_CLASSES else projections


@torch.enable_grad()
def _fisher_kl(
    model: VisionTransformer,
    architecture: Architecture,
    batches: Sequence[Tensor],
    *,
    seed: int,
    projections: int,
    report: Progress,
) -> list[Tensor]:
    exact = architecture.classes <= EXACT_CLASSES
    passes = _passes(architecture, projections)
    generator = torch.Generator().manual_seed(seed)
    sums = [row.to(model.patch_embed.proj.weight.device) for row in _zeros(architecture)]
    for number, batch in enumerate(batches):
        x = _to_model(batch, model)
        gates = open_gates(architecture.widths, len(x), x)
        leaves = [leaf.requires_grad_() for leaf in _leaves(gates)]
        with gated(model, gates):
            log_p = _checked(model(x)).log_softmax(dim=-1)
        p = log_p.detach().double().exp()
        for step in range(passes):
            weight = p[:, step] if exact else torch.full_like(p[:, 0], 1.0 / passes)
            # Gates are per sample, so the gradient of the batch's sum holds every sample's own.
            to_differentiate = log_p[:, step].sum() if exact else projected(log_p, generator)
            gradients = torch.autograd.grad(to_differentiate, leaves, retain_graph=step < passes - 1)
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(torch.einsum("n,n...->...", weight, gradient.double().square()))
            report(number * passes + step + 1, len(batches) * passes)
    count = sum(len(batch) for batch in batches)
    return [0.5 * total / count for total in sums]


def _leaves(gates: Gates) -> list[Tensor]:
    """Every gate tensor in a fixed order: dim, then attn, heads, hidden of each block."""
    leaves = [gates.dim] + [gate for block in gates.blocks.values() for gate in (block.attn, block.heads, block.hidden)]
    return [leaf for leaf in leaves if leaf is not None]


def _zeros(architecture: Architecture) -> list[Tensor]:
    """One float64 tensor on the CPU per gate tensor, in the order of `_leaves`."""
    gates = open_gates(architecture.widths, 1, torch.zeros((), dtype=torch.float64))
    return [torch.zeros(leaf.shape[1:], dtype=torch.float64) for leaf in _leaves(gates)]


def _assemble(rows: list[Tensor], criterion: Criterion) -> Scores:
    """Scores from one tensor per gate tensor, in the order of `_leaves`."""
    dim, *rest = (row.double().cpu() for row in rows)
    return Scores(dim, torch.stack(rest[0::3]), torch.stack(rest[1::3]), torch.stack(rest[2::3]), criterion=criterion)


def _to_model(batch: Tensor, model: VisionTransformer) -> Tensor:
    like = model.patch_embed.proj.weight
    return batch.to(device=like.device, dtype=like.dtype)


def _checked(logits: Tensor) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise BuildError("the model's outputs are NaN or infinite on the images to score on; its training diverged")
    return logits


# --- exact kl ----------------------------------------------------------------------------------------------


@torch.no_grad()
def _exact_kl(
    model: VisionTransformer,
    architecture: Architecture,
    batches: Sequence[Tensor],
    which: Sequence[int],
    *,
    batch_size: int,
    report: Progress,
) -> list[Tensor]:
    """The rows `which`, in the order of `_leaves`; the others stay zero.

    Several components at once: the images are repeated, and every copy has another component's gate at 0.
    """
    rows = _zeros(architecture)
    owners = [None] + [block for block in range(len(architecture.widths.blocks)) for _ in range(3)]
    total = len(batches) * sum(rows[part].numel() for part in which)
    done = 0
    for batch in batches:
        x = _to_model(batch, model)
        streams = list(_streams(model, x))
        log_p = _checked(backbone.classify(model, streams[-1], len(model.blocks))).double().log_softmax(dim=-1)
        for part in which:
            row, owner = rows[part], owners[part]
            start = owner or 0
            together = max(1, batch_size // len(x))
            for removed in torch.split(torch.arange(row.numel()), together):
                gates = _gates_without(row, removed, owner, (part - 1) % 3, x)
                stream = streams[start].repeat(len(removed), 1, 1)
                if owner is None and architecture.pre_norm:
                    stream = _embedded(model, x, gates, len(removed))
                with gated(model, gates):
                    logits = _checked(backbone.classify(model, stream, start))
                log_q = logits.double().log_softmax(dim=-1).view(len(removed), len(x), -1)
                kl = (log_p.exp() * (log_p - log_q)).sum(dim=(1, 2))
                row.view(-1)[removed] += kl.cpu()
                done += len(removed)
                report(done, total)
    count = sum(len(batch) for batch in batches)
    return [row / count for row in rows]


def _streams(model: VisionTransformer, x: Tensor) -> Iterator[Tensor]:
    """The residual stream before every block and after the last, `[batch, tokens, dim]`."""
    stream = backbone.embed(model, x)
    yield stream
    for block in model.blocks:
        stream = block(stream)
        yield stream


def _embedded(model: VisionTransformer, x: Tensor, gates: Gates, copies: int) -> Tensor:
    """The stream before block 0 where a norm already stands before it, for every copy of the batch."""
    with gated(model, gates):
        return backbone.embed(model, x.repeat(copies, 1, 1, 1))


def _gates_without(row: Tensor, removed: Tensor, owner: int | None, kind: int, x: Tensor) -> Gates:
    """Gates for `len(removed)` copies of the batch `x`, copy i without component `removed[i]` of `row`."""
    gate = torch.ones(len(removed), row.numel(), dtype=x.dtype, device=x.device)
    gate[torch.arange(len(removed)), removed] = 0.0
    gate = gate.repeat_interleave(len(x), dim=0).view(-1, *row.shape)
    if owner is None:
        return Gates(gate, {})
    return Gates(None, {owner: BlockGates(**{("attn", "heads", "hidden")[kind]: gate})})


# --- without images ----------------------------------------------------------------------------------------


def _random(architecture: Architecture, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.rand(row.shape, generator=generator, dtype=torch.float64) for row in _zeros(architecture)]
    return _assemble(rows, "random")


def _magnitude(model: VisionTransformer, architecture: Architecture) -> Scores:
    """Per component, the root of the sum of squares over every matrix row or column that is the component's.

    Vectors (biases, gains of norms, LayerScale) and position embeddings are left out: they add the same few numbers
    to every component, and a gain of 1 is not a weight.
    """
    squares = _zeros(architecture)
    for name, parameter in model.named_parameters():
        block, axes = backbone.axes(name)
        if not name.endswith(".weight") or parameter.dim() < 2:
            continue
        square = parameter.detach().double().cpu().square()
        for position, axis in enumerate(axes):
            if axis is None:
                continue
            along = square.transpose(0, position).flatten(1).sum(dim=1)
            if axis in ("dim", "feature"):
                squares[0] += along.view(-1, len(squares[0])).sum(dim=0)
            elif block is not None and axis == "hidden":
                squares[3 + 3 * block] += along
            elif block is not None:
                heads = along.view(-1, *squares[1 + 3 * block].shape).sum(dim=0)  # q, k and v, or the output
                squares[1 + 3 * block] += heads
                squares[2 + 3 * block] += heads.sum(dim=1)
    return _assemble([square.sqrt() for square in squares], "magnitude")
