"""Gates that do what surgery does, for the tests that compare the two."""

from __future__ import annotations

import torch

from edvit.builder.vit.gates import open_gates


def mask(selection, widths, like):
    """The gates, 1 on what is selected and 0 elsewhere, that do what `surgery.prune` does; one row for all."""
    gates = open_gates(widths, 1, like)
    if gates.dim is not None:
        gates.dim.copy_(_indicator(selection.dim, widths.dim, like))
    for i, (block, base) in enumerate(zip(selection.blocks, widths.blocks, strict=True)):
        gate = gates.blocks[i]
        if gate.attn is None or gate.heads is None or gate.hidden is None:
            continue
        gate.heads.copy_(_indicator(block.heads, base.heads, like))
        gate.hidden.copy_(_indicator(block.hidden, base.hidden, like))
        for head, kept in zip(block.heads.tolist(), block.head_dims, strict=True):
            gate.attn[:, head] = _indicator(kept, base.head_dim, like)
    return gates


def _indicator(kept, width, like):
    flags = torch.zeros(width, dtype=like.dtype, device=like.device)
    flags[kept.to(like.device)] = 1.0
    return flags
