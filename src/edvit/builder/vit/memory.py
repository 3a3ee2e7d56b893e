"""How many images at a time may go through a base model, and back, under a limit on memory."""

from __future__ import annotations

from edvit.errors import ConfigError
from edvit.plan.cost import model_cost
from edvit.shape.vit import Architecture

PROCESS_BYTES = 800_000_000
"""Python, torch and timm, measured."""
SPARE = 1.75
"""What is taken over the estimate: allocators round up, each machine's in its own way, and gradients are squared in
float64. Measured 1.46 to 1.56 on one machine, 1.65 on another."""


def images_within(limit_bytes: int, architecture: Architecture) -> int:
    """The most images whose activations a process of `limit_bytes` can keep for a backward pass through gates.

    Raises:
        ConfigError: not one image fits; the message says what does.
    """
    fixed = PROCESS_BYTES + 2 * model_cost(architecture).weight_bytes  # scoring works on a copy
    one = activation_bytes(architecture)
    count = (limit_bytes - fixed) // one
    if count < 1:
        raise ConfigError(
            f"{limit_bytes / 1e6:,.0f} MB for each process is too little to score {architecture.name}: "
            f"one image takes {(fixed + one) / 1e6:,.0f} MB; give a larger --memory-limit or fewer --workers"
        )
    return int(count)


def activation_bytes(architecture: Architecture) -> int:
    """What one image leaves in memory for a backward pass with a gate on every component, fp32, `SPARE` included.

    Of each block, in elements: the stream, its normalised copies and the layers' sums (`7 T d`); q, k, v, and what
    attention gives, before and after its gates (`6 T A`); the hidden units before and after GELU, and gated (`3 T f`);
    logits and softmax (`2 heads T^2`).
    """
    tokens, dim = architecture.tokens, architecture.widths.dim
    elements = sum(
        tokens * (7 * dim + 6 * block.attention + 3 * block.hidden) + 2 * block.heads * tokens**2
        for block in architecture.widths.blocks
    )
    return int(SPARE * 4 * elements)
