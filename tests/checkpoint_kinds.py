"""Checkpoints as training scripts and libraries write them, each made small: what timm and we make of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from vit_variants import CLASSES, NAMES, make

State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Attributes:
        what: in words, for docs/models.md.
        of: the file's content, from a state dict.
        variant: the kind of tiny model that it is of.
        into: the kind that it is loaded into; that one by default.
        outputs: of the head in the file.
        head: whether its head comes along.
        refused: pattern of the message, where it is refused.
        said: the message as docs/models.md has it.
    """

    what: str
    of: Callable[[State], Any]
    variant: str = "plain"
    into: str | None = None
    outputs: int = CLASSES
    head: bool = True
    refused: str | None = None
    said: str = ""

    @property
    def model(self) -> str:
        """Name of the model that the file is loaded into."""
        return NAMES[self.into or self.variant]

    def write(self, path: Path) -> tuple[Path, Any]:
        """The file, and the model whose weights it holds."""
        model = make(self.variant)
        content = self.of({name: value.clone() for name, value in model.state_dict().items()})
        if self.what.endswith("safetensors"):
            path = path.with_name(path.name.split(".")[0] + ".safetensors")
            save_file({name: value.contiguous() for name, value in content.items()}, path)
        else:
            torch.save(content, path)
        return path, make(self.into or self.variant)

    def row(self, *, timm_reads: bool) -> str:
        """Its line in docs/models.md."""
        ours = f"refused: {self.said}" if self.refused else "equal" if self.head else "equal, a new head is trained"
        return f"| {self.what} | {'reads it' if timm_reads else 'fails'} | {ours} |"


def by_timm(path: Path, kind: Kind) -> State | None:
    """The state of a model after `timm.models.load_checkpoint`; None: it fails."""
    model = timm.create_model(kind.model, num_classes=kind.outputs if kind.head or kind.outputs != CLASSES else 0)
    try:
        timm.models.load_checkpoint(model, str(path), filter_fn=checkpoint_filter_fn)
    except Exception:  # in its own many ways
        return None
    state: State = model.state_dict()
    return state


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def zeros(state: State) -> State:
    """Weights that nobody wants, beside those that are to be found."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def without(state: State, *starts: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(starts)}


def to(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {name: value.to(dtype) for name, value in state.items()}


def openai_clip(state: State) -> State:
    """timm's names as OpenAI's CLIP and OpenCLIP have them: the image tower is under `visual.`."""
    swaps = (
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"), ("cls_token", "class_embedding"),
    )  # fmt: skip
    named = {}
    for name, value in without(state, "head.").items():
        renamed = "ln_post." + name.removeprefix("norm.") if name.startswith("norm.") else name
        for ours, theirs in swaps:
            renamed = renamed.replace(ours, theirs)
        squeezed = value[0, 0] if name == "cls_token" else value[0] if name == "pos_embed" else value
        named[f"visual.{renamed}"] = squeezed
    return {**named, "visual.proj": torch.ones(24, 7), "logit_scale": torch.ones(())}


KINDS = {
    "plain": Kind("a state dict", lambda s: s),
    "safetensors": Kind("the same as safetensors", lambda s: s),
    "half": Kind("in float16", to(torch.float16)),
    "bfloat": Kind("in bfloat16", to(torch.bfloat16)),
    "double": Kind("in float64", to(torch.float64)),
    "timm-train": Kind(
        "timm's train.py: `state_dict`, `state_dict_ema` (taken), optimizer",
        lambda s: {"epoch": 3, "arch": "x", "state_dict": zeros(s), "state_dict_ema": s, "optimizer": {}},
    ),
    "timm-args": Kind("with `args` as a Namespace", lambda s: {"state_dict": s, "args": argparse.Namespace(lr=1)}),
    "deit": Kind("DeiT's: `model`, `model_ema` (taken)", lambda s: {"model": zeros(s), "model_ema": s, "epoch": 3}),
    "model": Kind("under `model`", lambda s: {"model": s}),
    "parallel": Kind("of DataParallel: `module.`", lambda s: {"state_dict": prefixed("module.", s)}),
    "averaged": Kind(
        "of torch's AveragedModel (SWA, EMA): `module.` and `n_averaged`",
        lambda s: {**prefixed("module.", s), "n_averaged": torch.tensor(5)},
    ),
    "averaged-key": Kind(
        "the same under `swa_model`",
        lambda s: {"swa_model": {**prefixed("module.", s), "n_averaged": torch.tensor(5)}, "epoch": 3},
    ),
    "averaged-parallel": Kind(
        "AveragedModel of DataParallel",
        lambda s: {**prefixed("module.module.", s), "n_averaged": torch.tensor(5)},
    ),
    "compiled": Kind("of torch.compile: `_orig_mod.`", lambda s: prefixed("_orig_mod.", s)),
    "compiled-parallel": Kind("`module._orig_mod.`", lambda s: {"state_dict": prefixed("module._orig_mod.", s)}),
    "parallel-compiled": Kind("`_orig_mod.module.`", lambda s: {"state_dict": prefixed("_orig_mod.module.", s)}),
    "compiled-safetensors": Kind("`_orig_mod.` as safetensors", lambda s: prefixed("_orig_mod.", s)),
    "parallel-safetensors": Kind("`module.` as safetensors", lambda s: prefixed("module.", s)),
    "lightning": Kind(
        "Lightning: `model.` beside a loss",
        lambda s: {"state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(3)}, "callbacks": {}},
    ),
    "lightning-net": Kind("Lightning: `net.encoder.`", lambda s: {"state_dict": prefixed("net.encoder.", s)}),
    "lightning-compiled": Kind(
        "Lightning: `model._orig_mod.`", lambda s: {"state_dict": prefixed("model._orig_mod.", s)}
    ),
    "lightning-parallel": Kind(
        "Lightning in DataParallel: `module.model.`", lambda s: {"state_dict": prefixed("module.model.", s)}
    ),
    "own-loop": Kind(
        "a loop of one's own: `model_state_dict`",
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"lr": 1.0}, "loss": 0.5},
    ),
    "own-loop-parallel": Kind(
        "`model_state_dict` of DataParallel", lambda s: {"model_state_dict": prefixed("module.", s)}
    ),
    "dino": Kind(
        "DINO's: `teacher` (taken) and `student`, `backbone.`, heads of its own",
        lambda s: {
            "student": prefixed("module.backbone.", zeros(s)),
            "teacher": {**prefixed("backbone.", without(s, "head.")), "head.mlp.0.weight": torch.ones(2, 2)},
            "epoch": 3,
        },
        head=False,
    ),
    "mae": Kind(
        "a masked autoencoder's, with its decoder",
        lambda s: {
            "model": {**without(s, "head."), "decoder_embed.weight": torch.ones(2, 2), "mask_token": s["cls_token"]}
        },
        head=False,
    ),
    "no-head": Kind("without a head", lambda s: without(s, "head."), head=False),
    "more-classes": Kind(
        "with a head of other classes",
        lambda s: {**s, "head.weight": torch.ones(9, 24), "head.bias": torch.ones(9)},
        outputs=9,
        head=False,
    ),
    "openclip": Kind("CLIP's image tower in OpenCLIP's naming", openai_clip, variant="pre_norm", outputs=7, head=False),
    "openclip-trunk": Kind(
        "OpenCLIP around a timm model: `visual.trunk.`",
        lambda s: prefixed("visual.trunk.", without(s, "head.")),
        head=False,
    ),
    "dinov2": Kind(
        "DINOv2's, with a mask token",
        lambda s: {**without(s, "head."), "mask_token": torch.ones(1, 24)},
        variant="layer_scale",
        head=False,
    ),
    "dinov2-registers": Kind(
        "DINOv2's with registers",
        lambda s: {
            **without(s, "head.", "reg_token", "pos_embed"),
            "register_tokens": s["reg_token"],
            "cls_token": torch.zeros_like(s["cls_token"]),
            "pos_embed": torch.cat([s["cls_token"], s["pos_embed"]], dim=1),
            "mask_token": torch.ones(1, 24),
        },
        variant="dinov2_reg4",
        head=False,
    ),
    "siglip": Kind(
        "with attention pooling, as SigLIP",
        lambda s: {**s, "attn_pool.latent": torch.ones(1, 1, 24)},
        refused="it pools its tokens by attention, as SigLIP does",
        said="it pools its tokens by attention",
    ),
    "fc-norm": Kind(
        "of average pooling with `fc_norm` into a model with a class token",
        lambda s: {**without(s, "norm."), "fc_norm.weight": torch.ones(24), "fc_norm.bias": torch.ones(24)},
        refused=r"it pools its tokens by their mean and has a norm after it \(fc_norm\)",
        said="it pools its tokens by their mean",
    ),
    "no-class-token": Kind(
        "without a class token into a model with one",
        lambda s: s,
        variant="avg_pool",
        into="plain",
        refused="it pools its tokens by their mean|it has no class token",
        said="it has no class token",
    ),
    "class-token": Kind(
        "with a class token into a model without one",
        lambda s: s,
        into="avg_pool",
        refused="it has a class token, and the model has none",
        said="it has a class token, and the model has none",
    ),
    "resnet": Kind(
        "of another architecture",
        lambda _: {"conv1.weight": torch.ones(3), "layer1.0.conv1.weight": torch.ones(3)},
        refused="its tensors have other names, the first is conv1",
        said="its tensors have other names, the first is conv1.weight",
    ),
    "two-models": Kind(
        "of a student and a teacher side by side",
        lambda s: {"state_dict": {**prefixed("student.", s), **prefixed("teacher.", s)}},
        refused=r"holds several models \(student\., teacher\.\); save the one to split",
        said="holds several models (student., teacher.)",
    ),
    "optimizer": Kind(
        "without a state dict",
        lambda _: {"epoch": 3, "optimizer": {"lr": 1.0}, "best": 0.5},
        refused="its first keys are epoch, optimizer, best",
        said="no state dict in it; its first keys are epoch, optimizer, best",
    ),
    "whole-model": Kind(
        "a pickled model",
        lambda _: make("plain"),
        refused="it holds Python objects or code beside tensors",
        said="it holds Python objects or code beside tensors",
    ),
    "nan": Kind(
        "with a NaN in it",
        lambda s: {**s, "norm.bias": torch.full((24,), float("nan"))},
        refused="norm.bias holds NaN or infinite values",
        said="norm.bias holds NaN or infinite values",
    ),
}  # fmt: skip
