"""Tensors of Hugging Face transformers' ViT, DeiT, DINOv2 and ViT-MAE by the names that timm's models have.

Layouts of transformers 5.24: queries, keys and values are layers of their own, and blocks are `encoder.layer.N`.
DINOv2 becomes the naming of its authors, which timm's own conversion reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PATCHES = "embeddings.patch_embeddings.projection.weight"

_STEM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_BLOCK = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_CLASSIFIERS = (("classifier", "head"), ("cls_classifier", "head"), ("distillation_classifier", "head_dist"))
_PROJECTION = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has transformers' names."""
    return any(name.endswith(_PATCHES) for name in state)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone and the heads, without poolers and decoders; names that are unknown stay as they are."""
    prefix = next(name for name in state if name.endswith(_PATCHES)).removesuffix(_PATCHES)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    named: dict[str, Tensor] = {}
    for name, value in own.items():
        if name.startswith(("pooler.", "decoder.", "classifier.", "cls_classifier.", "distillation_classifier.")):
            continue
        if match := _PROJECTION.fullmatch(name):
            block, kind = match.groups()
            parts = [own[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            named[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not re.search(r"\.attention\.attention\.(key|value)\.", name):
            named[_renamed(name)] = value
    if "register_tokens" not in named:
        named.pop("mask_token", None)  # timm takes a model with one for its authors' DINOv2
    heads = ((f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in _CLASSIFIERS for kind in ("weight", "bias"))
    return {**named, **{ours: state[theirs] for theirs, ours in heads if theirs in state}}


def _renamed(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    table, lead, rest = (_BLOCK, f"blocks.{layer[1]}.", layer[2]) if layer else (_STEM, "", name)
    if rest in table:
        return lead + table[rest]
    stem, _, kind = rest.rpartition(".")
    return f"{lead}{table[stem]}.{kind}" if stem in table else name
