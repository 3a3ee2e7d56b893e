"""What a model costs, counted from its shape alone: parameters, operations, bytes, seconds, joules.

Symbols below: `T` tokens (prefix included), `P` patches, `d` embedding dimension, `A = heads x head_dim`
attention width, `f` FFN hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edvit.fleet import PROFILES, Device, Fleet
from edvit.plan.conv_cost import conv_activations, conv_flops, conv_params
from edvit.shape.any import AnyArchitecture
from edvit.shape.conv import ConvArchitecture
from edvit.shape.vit import Architecture, BlockWidths

Precision = Literal["fp32", "int8", "int4"]
"""How a sub-model's file stores its weights; `int8` is ONNX Runtime's dynamic quantisation of matrix products, and
`int4` the same in half of the bytes, which a device unpacks to int8."""

FOUR_BIT_BLOCK = 32
"""Inputs of a weight matrix in int4 that share a multiplier."""
ACTIVATION_BYTES = 4
"""Activations and features are fp32."""


@dataclass(frozen=True)
class Cost:
    """What one model costs on one image."""

    params: int
    flops: int
    """Floating-point operations of its matrix products, a multiply-add as two."""
    weight_bytes: int
    peak_memory_bytes: int
    """Weights and the largest set of activations that live at once: what counts against a device's limit."""
    input_bytes: int
    """The uint8 image that goes to the device."""
    feature_bytes: int
    """The fp32 feature that comes back."""

    def within(self, limit: Cost) -> bool:
        """Whether a plan made for `limit` stays valid: no more parameters, operations and peak memory."""
        return (
            self.params <= limit.params
            and self.flops <= limit.flops
            and self.peak_memory_bytes <= limit.peak_memory_bytes
        )


def model_cost(architecture: AnyArchitecture, precision: Precision = "fp32") -> Cost:
    """Cost of a whole or pruned model of either family; blocks may differ in their widths.

    Args:
        architecture: with `classes=0` for a sub-model as it is exported (it ends at its feature).
        precision: of the weights. In int8 a ViT's matrices take a byte a weight, and a scale and a zero point (int8)
            for each output; scales, position embeddings, biases, norms and convolutions take two bytes in the file,
            and four once it is loaded. In int4 a matrix takes half a byte a weight, and half a byte for each 32 inputs
            of an output, a little less as the file is compressed; once it is loaded it is as in int8.
    """
    input_bytes = architecture.channels * architecture.image_size.pixels
    if isinstance(architecture, ConvArchitecture):
        params, flops = conv_params(architecture), conv_flops(architecture)
        activation_bytes = input_bytes + conv_activations(architecture) * ACTIVATION_BYTES
    else:
        params, flops = vit_params(architecture), vit_flops(architecture)
        activation_bytes = peak_activation_bytes(architecture)
    weight_bytes = loaded_bytes = 4 * params
    if precision != "fp32":
        matrices = [] if isinstance(architecture, ConvArchitecture) else list(_matrices(architecture))
        whole = sum(inputs * outputs for inputs, outputs in matrices)
        scales = sum(outputs for _, outputs in matrices)
        weight_bytes = whole + 3 * scales + 2 * (params - whole)
        loaded_bytes = whole + 5 * scales + 4 * (params - whole)
        if precision == "int4":
            blocks = sum(-(-inputs // FOUR_BIT_BLOCK) * outputs for inputs, outputs in matrices)
            weight_bytes = (whole + blocks + 1) // 2 + 2 * scales + 2 * (params - whole)
    return Cost(
        params=params,
        flops=flops,
        weight_bytes=weight_bytes,
        peak_memory_bytes=loaded_bytes + activation_bytes,
        input_bytes=input_bytes,
        feature_bytes=architecture.feature_dim * ACTIVATION_BYTES,
    )


def vit_params(architecture: Architecture) -> int:
    """Number of parameters, equal to those of the model that `edvit.builder.vit.backbone.create` makes."""
    dim = architecture.widths.dim
    norm = _stream_norm_params(architecture)
    embed = dim * architecture.channels * architecture.patch_size**2
    # timm's pre-norm takes the place of the patch embedding's bias.
    embed += norm if architecture.pre_norm else dim
    embed += dim * (dim + 1) if _mixes(architecture) else 0
    positions = {"all": architecture.tokens, "patches": _patches(architecture), "none": 0}
    stream = (positions[architecture.position_embeddings] + architecture.prefix_tokens) * dim
    blocks = sum(_block_params(architecture, block) for block in architecture.widths.blocks)
    final_norm = norm if architecture.final_norm else 0
    head = (architecture.feature_dim + 1) * architecture.classes
    return embed + stream + blocks + final_norm + head


def _norm_params(architecture: Architecture, width: int) -> int:
    return width if architecture.rms_norm else 2 * width


def _stream_norm_params(architecture: Architecture) -> int:
    return architecture.widths.dim if architecture.rotated else _norm_params(architecture, architecture.widths.dim)


def _mixes(architecture: Architecture) -> bool:
    """Whether a `d x d` layer follows the norm before the blocks."""
    return architecture.rotated and architecture.pre_norm


def _block_params(architecture: Architecture, block: BlockWidths) -> int:
    dim, attention, hidden = architecture.widths.dim, block.attention, block.hidden
    norms = 2 * _stream_norm_params(architecture)
    if architecture.qk_norm:
        norms += 2 * _norm_params(architecture, block.head_dim)  # one for q and one for k, shared by the heads
    weights = 4 * dim * attention + 2 * dim * hidden
    qkv_bias = 3 * attention if architecture.qkv_bias else 0
    other_biases = 2 * dim + hidden if architecture.proj_bias else 0
    layer_scale = 2 * dim if architecture.layer_scale else 0
    return norms + weights + qkv_bias + other_biases + layer_scale


def _matrices(architecture: Architecture) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of every matrix that is quantised; of a sub-model, which has no head."""
    dim = architecture.widths.dim
    yield architecture.channels * architecture.patch_size**2, dim
    if _mixes(architecture):
        yield dim, dim
    for block in architecture.widths.blocks:
        yield from [(dim, 3 * block.attention), (block.attention, dim), (dim, block.hidden), (block.hidden, dim)]


def vit_flops(architecture: Architecture) -> int:
    """Floating-point operations per image, a multiply-add as two.

    Counted: every matrix product (patch embedding, qkv, `q kᵀ`, attention times values, proj, FFN, head).
    Not counted: biases, norms, softmax, GELU and residual additions, which take no matrix product.
    """
    dim, tokens = architecture.widths.dim, architecture.tokens
    mix = 2 * tokens * dim * dim if _mixes(architecture) else 0
    blocks = sum(2 * tokens * dim * (4 * block.attention + 2 * block.hidden) for block in architecture.widths.blocks)
    head = 2 * architecture.feature_dim * architecture.classes
    return embedding_flops(architecture) + mix + blocks + attention_flops(architecture) + head


def embedding_flops(architecture: Architecture) -> int:
    """Operations of the patch embedding, which `vit_flops` counts as well."""
    weights = architecture.channels * architecture.patch_size**2 * architecture.widths.dim
    return 2 * _patches(architecture) * weights


def attention_flops(architecture: Architecture) -> int:
    """Operations of `q kᵀ` and of attention times values, which `vit_flops` counts as well; no weight takes part."""
    return sum(4 * architecture.tokens**2 * block.attention for block in architecture.widths.blocks)


def peak_activation_bytes(architecture: Architecture) -> int:
    """Largest set of fp32 activations that live at once for one image, the input included.

    The maximum over three moments, in elements:

    - embedding: the normalised image twice (before and after normalisation) and the `T x d` stream;
    - attention: the stream, its normalised copy, q, k and v (`3 T A`), logits and softmax (`2 heads T²`);
    - FFN: the stream, its normalised copy, and the hidden units before and after GELU (`2 T f`).

    A runtime that fuses operators needs less; its own code and arena come on top and are not counted here.
    """
    tokens, dim = architecture.tokens, architecture.widths.dim
    pixels = architecture.channels * architecture.image_size.pixels
    stream = tokens * dim
    moments = [2 * pixels + stream]
    for block in architecture.widths.blocks:
        moments.append(2 * stream + 3 * tokens * block.attention + 2 * block.heads * tokens * tokens)
        moments.append(2 * stream + 2 * tokens * block.hidden)
    return pixels + max(moments) * ACTIVATION_BYTES


def _patches(architecture: Architecture) -> int:
    return architecture.tokens - architecture.prefix_tokens


def mlp_flops(widths: Sequence[int]) -> int:
    """Operations of an MLP per sample, a multiply-add as two; `widths` from input to output, e.g. `(640, 256, 10)`."""
    return sum(2 * fan_in * fan_out for fan_in, fan_out in pairwise(widths))


def latency_s(cost: Cost, device: Device) -> float:
    """Predicted seconds for one image on `device`: operations by its effective speed."""
    return cost.flops / (device.gflops * 1e9)


def energy_j(cost: Cost, device: Device) -> float:
    """Predicted joules for one image on `device`: watts times latency."""
    return device.watts * latency_s(cost, device)


def uplink_s(fleet: Fleet, devices: int, input_bytes: int) -> float:
    """Seconds for the gateway to send one input to each of `devices` devices through its shared uplink."""
    return devices * _seconds(input_bytes, fleet.gateway.uplink_mbps)


def communication_s(fleet: Fleet, device: Device, *, devices: int, input_bytes: int, feature_bytes: int) -> float:
    """Predicted seconds from the first byte sent to the last feature received, less the device's own work.

    One input goes to each of `devices` devices, however many sub-models each holds. All of them leave through the
    gateway's uplink, so the last one is out after `devices` inputs; meanwhile each flows on at its link's speed:
    the slower of the two decides. Then one round trip, and the features over the device's link.

    Args:
        devices: devices that hold a sub-model, this one included.
        input_bytes: size of one input on the wire.
        feature_bytes: size of this device's features together.
    """
    out = max(uplink_s(fleet, devices, input_bytes), _seconds(input_bytes, device.link.mbps))
    return out + device.link.rtt_ms / 1e3 + _seconds(feature_bytes, device.link.mbps)


def fusion_s(widths: Sequence[int], gflops: float = PROFILES["local"].gflops) -> float:
    """Predicted seconds for the fusion MLP on the gateway; `widths` from input to output."""
    return mlp_flops(widths) / (gflops * 1e9)


def _seconds(size_bytes: int, mbps: float) -> float:
    return size_bytes * 8 / (mbps * 1e6)
