"""Export to ONNX: uint8 in, float32 out, any batch; compared with PyTorch before the file is kept."""

from __future__ import annotations

import io
import logging
import math
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from edvit.builder.export.onnx_form import OPSET, onnx_form
from edvit.builder.train.fusion import Fusion
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import BuildError
from edvit.runtime.engine.session import open_session

TOLERANCE = 1e-4
"""Largest difference between PyTorch's output and ONNX Runtime's that is let through, relative to the largest value of
the output where that is above 1: features are not normalised, and float32 rounds in proportion to them."""
FEWEST_HALVED = 32
"""Constants of fewer values are not worth the operator that widens them."""
QUANTISATION_LIMIT = 0.3
"""Largest relative distance between features of int8 and of fp32 that is let through."""


def export_submodel(extractor: FeatureExtractor, images: Tensor, path: Path) -> None:
    """Write `image` uint8 `[batch, channels, height, width]` -> `feature` float32 `[batch, dim]`.

    Args:
        images: uint8, at least two real images to compare on.

    Raises:
        BuildError: ONNX Runtime's features differ from PyTorch's by more than `TOLERANCE`.
    """
    export_module(extractor, (images,), ["image"], "feature", path)


def quantise_submodel(path: Path, images: Tensor) -> float:
    """Replace an exported model by one with int8 weights: ONNX Runtime's dynamic quantisation of matrix products.

    Each output channel has a scale of its own: with one for a whole matrix, the features of a DeiT-Tiny cut to a third
    moved by 11 % of their length, with these by 3 %.

    Args:
        images: uint8, real images to compare on.

    Returns:
        By how much the features move, relative to their length, mean over the images.

    Raises:
        BuildError: by more than `QUANTISATION_LIMIT`.
    """
    before = _features(path, images)
    whole = path.with_suffix(".fp32.onnx")
    path.rename(whole)
    logging.disable(logging.WARNING)  # it advises to pre-process the model, which changes nothing here
    try:
        quantize_dynamic(
            whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
        )
    finally:
        logging.disable(logging.NOTSET)
    whole.unlink()
    _halve(path)
    moved = np.linalg.norm(_features(path, images) - before, axis=1) / np.linalg.norm(before, axis=1)
    error = float(moved.mean())
    if not error <= QUANTISATION_LIMIT:  # also where it is NaN
        raise BuildError(f"in int8 a sub-model's features move by {error:.0%} of their length; use --precision fp32")
    return error


def _halve(path: Path) -> None:
    """Store what stayed float32, as biases, scales and position embeddings, in two bytes; a session widens it again.

    Constants that float16 cannot hold stay as they are: too large ones, and such as the scales of an embedding of
    pixels, which are too small.
    """
    model = onnx.load(str(path))
    casts = []
    for constant in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < FEWEST_HALVED:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.abs(half - values).max() <= 2**-10 * np.abs(values).max():
            continue
        name = constant.name
        constant.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # shapes between operators, which a session works out for itself
    onnx.save(model, str(path))


def _features(path: Path, images: Tensor) -> npt.NDArray[np.float32]:
    features: npt.NDArray[np.float32] = open_session(path, threads=1).run(None, {"image": images.numpy()})[0]
    return features


def export_fusion(fusion: Fusion, features: Tensor, path: Path) -> None:
    """Write `features`, `present` -> `logits`, all float32; compared with every feature there and with some absent.

    Args:
        features: real features `[samples, sum of dims]`, at least two.

    Raises:
        BuildError: as for `export_submodel`.
    """
    submodels = fusion.expand.shape[0]
    present = torch.ones(len(features), submodels)
    present[1::2, 0] = 0.0
    export_module(fusion, (features, present), ["features", "present"], "logits", path)


def export_module(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], output: str, path: Path) -> None:
    """Write any module whose first axis is the batch.

    Args:
        inputs: real ones, at least two of each, to compare on.
        names: of the inputs.
        output: name of the output.

    Raises:
        BuildError: ONNX Runtime's output differs from PyTorch's by more than `TOLERANCE`.
    """
    module.eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        torch.onnx.export(
            onnx_form(module),
            inputs,
            str(path),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            opset_version=OPSET,
        )
    _strip(path)
    _compare(module, inputs, names, path)


def _strip(path: Path) -> None:
    """Remove what the exporter notes about the source code: it holds paths, and would change the digest."""
    model = onnx.load(str(path))
    model.producer_version = ""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    onnx.save(model, str(path))


def _compare(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, len(inputs[0])):  # the batch must be free
        some = tuple(value[:count] for value in inputs)
        with torch.inference_mode():
            expected = module(*some).numpy()
        found = session.run(None, dict(zip(names, (value.numpy() for value in some), strict=True)))[0]
        check_close(found, expected, path.name)


def check_close(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], what: str) -> None:
    """Raise BuildError where the two differ by more than `TOLERANCE` of the largest value, 1 at least, or are NaN."""
    difference, scale = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not (math.isfinite(scale) and difference <= TOLERANCE * max(1.0, scale)):  # also where they are NaN
        raise BuildError(
            f"{what}: ONNX Runtime differs from PyTorch by {difference:.2g}, in values of up to {scale:.2g}; "
            "not written: try other versions of onnxruntime and torch"
        )
