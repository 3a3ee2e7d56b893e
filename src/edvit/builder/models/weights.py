"""Weights of a user's checkpoint as a model: the same numbers as timm's, or one line that says why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from edvit.builder.models import transformers_names
from edvit.builder.models.class_names import HeadOrder
from edvit.builder.models.family import Classifier, family_of
from edvit.builder.models.origin import Origin
from edvit.builder.models.weights_file import read_weights
from edvit.errors import WeightsError
from edvit.shape.any import AnyArchitecture


def load_weights(
    origin: Origin, architecture: AnyArchitecture, order: HeadOrder | None = None
) -> tuple[Classifier, bool]:
    """A model with the weights of a checkpoint, float32 on the CPU.

    Position embeddings are resampled to its image size and the input projection is adapted to its channels, both as
    timm does. The head is kept if it has an output for each class, else it is left freshly initialised.

    Args:
        origin: the checkpoint.
        architecture: of the whole model.
        order: which outputs of the checkpoint's head to take; None: all, as they stand.

    Returns:
        The model, and whether its head came from the checkpoint.

    Raises:
        WeightsError: a file is missing, damaged, holds more than tensors, or is of another architecture.
    """
    state = read_weights(origin.files)
    family, name = family_of(architecture.name), architecture.name
    model = family.create(architecture)
    own = model.state_dict()
    if transformers_names.is_transformers(state):
        state = transformers_names.timm_names(state)
    state = _of_backbone(origin.given, state, own)
    try:
        fitted = family.fit_weights(state, model, origin.facts.image_size)
    except Exception:  # timm meets names and shapes it was not written for, and fails in its own ways
        fitted = state
    fitted, head_kept = _with_head(origin.given, fitted, own, order)
    _check(origin.given, name, fitted, own, optional=() if head_kept else _head_names(own))
    model.load_state_dict({**own, **fitted}, strict=True)
    return model, head_kept


def has_fc_norm(origin: Origin) -> bool:
    """Whether the last norm of a checkpoint stands after the pooling of the tokens. Raises WeightsError."""
    return any("fc_norm." in name for name in read_weights(origin.files))


def _of_backbone(given: str, state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the model in a state dict that holds it under a prefix, such as Lightning's `model.`.

    A decoder beside the model, as in a file of a masked autoencoder, is left out.

    Raises:
        WeightsError: the file holds the model more than once.
    """
    state = {name: value for name, value in state.items() if not name.startswith("decoder_")}
    anchor = next(name for name in own if "." in name)
    prefixes = sorted(name.removesuffix(anchor) for name in state if name.endswith(f".{anchor}"))
    if anchor in state or not prefixes or prefixes[0].startswith("visual."):  # CLIP's names are timm's to convert
        return state
    if len(prefixes) > 1:
        raise WeightsError(f"{given}: holds several models ({', '.join(prefixes)}); save the one to split alone")
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def _head_names(own: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in ("head.weight", "head.bias") if name in own)


def _with_head(
    given: str, state: dict[str, Tensor], own: Mapping[str, Tensor], order: HeadOrder | None
) -> tuple[dict[str, Tensor], bool]:
    """The state with its head in that order or, where it has other classes, without it; and whether it stays."""
    names = _head_names(own)
    body = {name: value for name, value in state.items() if not name.startswith("head.")}
    if not names or not all(name in state for name in names):
        return body, False
    head = {name: state[name] for name in names}
    outputs = len(head[names[0]])
    if order is not None:
        if order.outputs != outputs:
            raise WeightsError(f"{order.source} names {order.outputs} outputs, and the head of {given} has {outputs}")
        head = {name: value[list(order.rows)] for name, value in head.items()}
    if any(len(value) != len(own[name]) for name, value in head.items()):
        return body, False
    return {**body, **head}, True


def _check(
    given: str, name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: Collection[str]
) -> None:
    """Compare with what the model has; the message says what the weights are, or names the first tensor that differs.

    Raises:
        WeightsError: they are not the model's.
    """
    what = _kind(state, expected)
    if what is not None:
        raise WeightsError(f"{given}: not weights of {name}: {what}")
    for key, want in expected.items():
        if key not in state:
            if key in optional:
                continue
            raise WeightsError(f"{given}: not weights of {name}: {key} is missing, {list(want.shape)} was expected")
        if state[key].shape != want.shape:
            came, wanted = list(state[key].shape), list(want.shape)
            raise WeightsError(f"{given}: not weights of {name}: {key} is {came}, {wanted} was expected")
    for key, value in state.items():
        if key not in expected:
            raise WeightsError(f"{given}: not weights of {name}: {key} {list(value.shape)} has no place in it")


def _kind(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What these weights are, where they are of a kind that is known and not the model's."""
    if sum(key in expected for key in state) < len(state) / 2:
        return f"its tensors have other names, the first is {next(iter(state))}"
    if any(key.startswith("attn_pool.") for key in state) and "attn_pool.latent" not in expected:
        return "it pools its tokens by attention, as SigLIP does"
    if "dist_token" in state and "dist_token" not in expected:
        return "it has a distillation token; give the model's distilled form, such as deit_tiny_distilled_patch16_224"
    if "fc_norm.weight" in state and "fc_norm.weight" not in expected:
        return "it pools its tokens by their mean and has a norm after it (fc_norm); give --pool avg"
    if "cls_token" in expected and "cls_token" not in state:
        return "it has no class token, so it pools its tokens in another way"
    if "cls_token" in state and "cls_token" not in expected:
        return "it has a class token, and the model has none"
    if "reg_token" in expected and "reg_token" not in state:
        return "it has no register or distillation tokens, and the model has"
    return None
