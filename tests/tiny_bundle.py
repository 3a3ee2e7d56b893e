"""A tiny but real bundle for tests of the run-time world, made with onnx alone (no torch).

Each sub-model's feature is a fixed random projection of the mean colour of its image; the fusion is a linear
layer over the features, with a stand-in for absent ones.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edvit.bundle import (
    BaseModelInfo,
    Bundle,
    DataInfo,
    FusionInfo,
    Manifest,
    PlacedSubModel,
    PlanInfo,
    SubModelInfo,
    model_file,
    write_bundle,
)
from edvit.fleet import Fleet, local_fleet
from edvit.inputs.preprocess import Preprocessing
from edvit.runtime.engine.four_bits import PackedMatrix, blocks_of, pack
from edvit.shape.image import ImageSize
from edvit.shape.vit import BlockWidths, Widths

FEATURE_DIM = 8


def _save(nodes, inputs, outputs, initializers, path: Path) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_submodel(path: Path, channels: int, size: ImageSize | int, seed: int, ballast_bytes: int = 0) -> None:
    """image uint8 [batch, channels, height, width] -> feature float32 [batch, FEATURE_DIM]."""
    weight = np.random.default_rng(seed).normal(size=(channels, FEATURE_DIM)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.float32(255.0), "scale"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["as_float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["feature" if not ballast_bytes else "plain"]),
    ]
    if ballast_bytes:
        # Weights that are really used, so that a runtime cannot drop them: feature = plain + 0 * sum(ballast).
        ballast = np.random.default_rng(seed).normal(size=(FEATURE_DIM, ballast_bytes // 4 // FEATURE_DIM))
        initializers += [
            numpy_helper.from_array(ballast.astype(np.float32), "ballast"),
            numpy_helper.from_array(np.float32(0.0), "zero"),
        ]
        nodes += [
            helper.make_node("MatMul", ["plain", "ballast"], ["wide"]),
            helper.make_node("ReduceMean", ["wide"], ["wide_mean"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["wide_mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["feature"]),
        ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", channels, *ImageSize.of(size)])
    feature = helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["batch", FEATURE_DIM])
    _save(nodes, [image], [feature], initializers, path)


def quantise(path: Path) -> None:
    """Replace a model by its int8 form, in which the images of a batch share one scale: ONNX Runtime's."""
    whole = path.rename(path.with_suffix(".fp32.onnx"))
    logging.disable(logging.WARNING)  # it advises to pre-process the model
    try:
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    finally:
        logging.disable(logging.NOTSET)
    whole.unlink()


def pack_file(path: Path) -> None:
    """Replace an int8 model by a container in four bits with other weights, which are random."""
    model = onnx.load(str(path))
    rng, matrices = np.random.default_rng(0), []
    for constant in model.graph.initializer:
        if constant.name.endswith("_quantized"):
            inputs, outputs = constant.dims
            codes = rng.integers(-8, 8, (inputs, outputs)).astype(np.int8)
            matrices.append(PackedMatrix(codes, np.full((blocks_of(inputs), outputs), 13, np.uint8)))
            constant.CopyFrom(numpy_helper.from_array(matrices[-1].whole(), constant.name))
    path.write_bytes(pack(model.SerializeToString(), matrices))


def write_fusion(path: Path, submodels: int, classes: int, seed: int = 0) -> None:
    """features, present -> logits; logits = (features * mask + stand_in * (1 - mask)) @ weight."""
    rng = np.random.default_rng(seed)
    width = submodels * FEATURE_DIM
    expand = np.repeat(np.eye(submodels, dtype=np.float32), FEATURE_DIM, axis=1)
    initializers = [
        numpy_helper.from_array(rng.normal(size=(width, classes)).astype(np.float32), "weight"),
        numpy_helper.from_array(rng.normal(size=(1, width)).astype(np.float32), "stand_in"),
        numpy_helper.from_array(expand, "expand"),
        numpy_helper.from_array(np.float32(0.5), "half"),
    ]
    nodes = [
        helper.make_node("MatMul", ["present", "expand"], ["mask"]),
        helper.make_node("Greater", ["mask", "half"], ["is_there"]),
        helper.make_node("Where", ["is_there", "features", "stand_in"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "weight"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width]),
        helper.make_tensor_value_info("present", TensorProto.FLOAT, ["batch", submodels]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    _save(nodes, inputs, [logits], initializers, path)


def write_tiny_bundle(
    target: Path,
    *,
    submodels: int = 2,
    classes: int = 4,
    channels: int = 3,
    size: ImageSize | int = 16,
    fleet: Fleet | None = None,
    ballast_bytes: int = 0,
    seed: int = 0,
    int8: bool = False,
) -> Bundle:
    """A bundle of `submodels` sub-models over `classes` classes, sub-model i on device i (modulo the fleet)."""
    fleet = fleet or local_fleet(submodels)
    widths = Widths(dim=8, blocks=(BlockWidths(heads=1, head_dim=8, hidden=8),))
    groups = [tuple(range(classes))[i::submodels] for i in range(submodels)]

    def fill(folder: Path) -> Manifest:
        infos = []
        for i, group in enumerate(groups):
            path = folder / f"submodel-{i}.onnx"
            write_submodel(path, channels, size, seed=seed + i, ballast_bytes=ballast_bytes)
            if int8:
                quantise(path)
            infos.append(
                SubModelInfo(
                    id=i,
                    classes=group,
                    widths=widths,
                    model=model_file(path),
                    params=channels * FEATURE_DIM,
                    flops=1000,
                    peak_memory_bytes=path.stat().st_size + 10_000,
                    feature_dim=FEATURE_DIM,
                )
            )
        fusion = folder / "fusion.onnx"
        write_fusion(fusion, submodels, classes, seed=seed)
        placed = tuple(
            PlacedSubModel(
                submodel=i,
                device=fleet.devices[i % len(fleet.devices)].name,
                latency_s=0.001,
                memory_bytes=infos[i].peak_memory_bytes,
                energy_j=0.01,
            )
            for i in range(submodels)
        )
        return Manifest(
            base=BaseModelInfo(
                name="tiny",
                image_size=size,
                widths=widths,
                params=1000,
                flops=1000,
                bytes=4000,
                weights_sha256="0" * 64,
            ),
            data=DataInfo(
                spec="tiny",
                classes=tuple(f"class-{i}" for i in range(classes)),
                train=0,
                validation=0,
                test=0,
            ),
            preprocessing=Preprocessing(
                image_size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
            ),
            submodels=tuple(infos),
            fusion=FusionInfo(model=model_file(fusion), submodels=tuple(range(submodels)), params=100),
            plan=PlanInfo(fleet=fleet, placed=placed, latency_s=0.002),
        )

    return write_bundle(target, fill)
