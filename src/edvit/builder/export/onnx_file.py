"""Export to ONNX: uint8 in, float32 out, any batch; compared with PyTorch before the file is kept."""

from __future__ import annotations

import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from edvit.builder.export.calibration import replace_weights
from edvit.builder.export.gptq import FourBits, gptq, nearest
from edvit.builder.export.onnx_form import OPSET, onnx_form
from edvit.builder.train.fusion import Fusion
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import BuildError
from edvit.plan.cost import Precision
from edvit.runtime.engine.four_bits import pack
from edvit.runtime.engine.session import open_session

TOLERANCE = 1e-4
"""Largest difference between PyTorch's output and ONNX Runtime's that is let through, relative to the largest value of
the output where that is above 1: features are not normalised, and float32 rounds in proportion to them."""
FEWEST_HALVED = 32
"""Constants of fewer values are not worth the operator that widens them."""
QUANTISATION_LIMITS: Mapping[Precision, float] = {"int8": 0.3, "int4": 0.5}
"""Largest relative distance between features of a precision and of fp32 that is let through."""
Method = Literal["gptq", "nearest"]
"""How weights are rounded to four bits: so that outputs change least, or each to the nearest value."""


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
        BuildError: by more than `QUANTISATION_LIMITS`.
    """
    before = _features(path, images)
    model = _quantised(onnx.load(str(path)), path.parent)
    _halve(model)
    onnx.save(model, str(path))
    return _moved(path, images, before, "int8")


def pack_submodel(
    path: Path, images: Tensor, calibration: Sequence[npt.NDArray[np.uint8]], method: Method = "gptq"
) -> float:
    """Replace an exported model by a container with weights in four bits (`edvit.runtime.engine.four_bits`).

    Args:
        images: uint8, real images to compare on.
        calibration: batches of training images, uint8 `[batch, channels, height, width]`.
        method: how weights are rounded.

    Returns:
        By how much the features move, relative to their length, mean over the images.

    Raises:
        BuildError: by more than `QUANTISATION_LIMITS`.
    """
    before = _features(path, images)
    model = onnx.load(str(path))
    # Its graph and the names of its constants do not depend on the weights.
    quantised = _quantised(model, path.parent)
    products = dict(_products(quantised))
    found: dict[str, FourBits] = {}

    def replace(
        name: str, weights: npt.NDArray[np.float32], hessian: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float32]:
        wide = weights.astype(np.float64)
        found[name] = gptq(wide, hessian) if method == "gptq" else nearest(wide, np.ones(len(wide)))
        return found[name].values()

    replace_weights(model, products, [{"image": batch} for batch in calibration], replace)
    constants = {constant.name: constant for constant in quantised.graph.initializer}
    for name, stem in products.items():
        constants[f"{stem}_quantized"].CopyFrom(
            numpy_helper.from_array(found[name].packed.whole(), f"{stem}_quantized")
        )
        constants[f"{stem}_scale"].CopyFrom(numpy_helper.from_array(found[name].scale, f"{stem}_scale"))
    _halve(quantised)
    order = [constant.name for constant in quantised.graph.initializer]
    matrices = sorted(products, key=lambda name: order.index(f"{products[name]}_quantized"))
    path.write_bytes(pack(quantised.SerializeToString(), [found[name].packed for name in matrices]))
    return _moved(path, images, before, "int4")


def _quantised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """ONNX Runtime's dynamic quantisation, which goes by files, here in a scratch folder within `folder`."""
    logging.disable(logging.WARNING)  # it advises to pre-process the model, which changes nothing here
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            whole, quantised = Path(scratch, "whole.onnx"), Path(scratch, "quantised.onnx")
            onnx.save(model, str(whole))
            quantize_dynamic(
                whole, quantised, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
            )
            return onnx.load(str(quantised))
    finally:
        logging.disable(logging.NOTSET)


def _products(quantised: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """The fp32 name of each weight that was quantised, and what its int8 constants' names begin with."""
    for constant in quantised.graph.initializer:
        if constant.data_type == onnx.TensorProto.INT8 and constant.name.endswith("_quantized"):
            stem = constant.name.removesuffix("_quantized")
            yield stem.removesuffix("_Transposed"), stem


def _moved(path: Path, images: Tensor, before: npt.NDArray[np.float32], precision: Precision) -> float:
    """By how much features moved from `before`, relative to their length. Raises BuildError where it is too far."""
    moved = np.linalg.norm(_features(path, images) - before, axis=1) / np.linalg.norm(before, axis=1)
    error = float(moved.mean())
    if not error <= QUANTISATION_LIMITS[precision]:  # also where it is NaN
        raise BuildError(
            f"in {precision} a sub-model's features move by {error:.0%} of their length; use --precision fp32"
        )
    return error


def _halve(model: onnx.ModelProto) -> None:
    """Store what stayed float32, as biases, scales and position embeddings, in two bytes; a session widens it again.

    Constants that float16 cannot hold stay as they are: too large ones, and such as the scales of an embedding of
    pixels, which are too small.
    """
    casts = []
    for constant in list(model.graph.initializer):
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < FEWEST_HALVED:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.abs(half - values).max() <= 2**-10 * np.abs(values).max():
            continue
        name = constant.name
        constant.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # shapes between operators, which a session works out for itself


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
