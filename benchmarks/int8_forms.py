"""Forms of an int8 sub-model, side by side on one thread: do batches change answers, how close, how fast, how large.

    python benchmarks/int8_forms.py parts-bundle --data imagefolder:parts

From the first sub-model of a bundle in fp32, on images of the test split. Times are CPU time of the one thread, so that
what else the machine does counts less; each round runs every form in every size of batch.

- dynamic: ONNX Runtime's dynamic quantisation, a batch as it is: one scale for the activations of all images.
- by image: the same file as the run time runs it, a batch one image at a time.
- by row: a scale for each token, in ONNX's own operators around MatMulInteger.
- blocks of N: MatMulNBits with weights of eight bits and accuracy level 4, a scale for N values of a token.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edvit.builder.export.onnx_file import quantise_submodel
from edvit.bundle import read_bundle
from edvit.inputs.datasets import read_split
from edvit.runtime.engine.session import Session, open_session
from edvit.runtime.evaluation import choose

Floats = npt.NDArray[np.float32]
BATCHES = (1, 16, 64)
Node = Callable[[NodeProto, Floats, list[TensorProto]], Iterator[NodeProto]]
"""From a product with a constant matrix `[inputs, outputs]` to the nodes in its place; adds its constants."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    how, source = bundle.manifest.preprocessing, read_split(args.data, "test", None)
    images = np.stack([source.prepared(int(index), how) for index in choose(source, max(BATCHES))])
    with tempfile.TemporaryDirectory() as folder:
        plain = bundle.model_path(bundle.manifest.submodels[0].model)
        files = write(plain, images, Path(folder))
        compare(files, images, args.rounds)


def write(plain: Path, images: npt.NDArray[np.uint8], folder: Path) -> dict[str, Path]:
    """The forms' files."""
    files = {"fp32": plain, "dynamic": folder / "dynamic.onnx"}
    shutil.copy(plain, files["dynamic"])
    quantise_submodel(files["dynamic"], torch.from_numpy(images[:8]))
    files["by image"] = files["dynamic"]
    for name, form in {"by row": by_row, "blocks of 32": in_blocks(32), "blocks of 64": in_blocks(64)}.items():
        files[name] = folder / f"{name}.onnx"
        rewrite(plain, files[name], form)
    return files


def compare(files: dict[str, Path], images: npt.NDArray[np.uint8], rounds: int) -> None:
    """Print one line for each form."""
    sessions = {name: open_session(path, threads=1) for name, path in files.items()}
    runs: dict[str, Callable[[npt.NDArray[np.uint8]], Floats]] = {}
    for name, session in sessions.items():
        # Together, whatever the run time would do: `dynamic` is there to show what that gives.
        runs[name] = one_by_one(session) if name == "by image" else together(session)
    exact = runs["fp32"](images)
    seconds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in runs for batch in BATCHES}
    for _ in range(rounds):
        for name, run in runs.items():
            for batch in BATCHES:
                start = time.thread_time()
                for _ in range(5 if batch == 1 else 1):
                    run(images[:batch])
                seconds[name, batch].append((time.thread_time() - start) / batch / (5 if batch == 1 else 1))
    print(f"{'':14} {'MB':>6} {'feature error':>14} {'batch moves':>12}", end="")
    print("".join(f"{f'ms, batch of {batch}':>24}" for batch in BATCHES))
    for name, run in runs.items():
        batch_features = run(images)
        alone = np.concatenate([run(image[None]) for image in images])
        line = f"{name:14} {files[name].stat().st_size / 1e6:6.2f} {distance(alone, exact):14.2%}"
        line += f" {distance(batch_features, alone):12.1e}"
        for batch in BATCHES:
            low, middle, high = (1e3 * value for value in np.percentile(seconds[name, batch], [10, 50, 90]))
            line += f"{f'{middle:.2f} ({low:.2f} – {high:.2f})':>24}"
        print(line)
    ratios = [a / b for a, b in zip(seconds["by image", 64], seconds["dynamic", 64], strict=True)]
    print(f"by image against dynamic, batches of 64: {statistics.median(ratios):.2f}× the time")


def together(session: Session) -> Callable[[npt.NDArray[np.uint8]], Floats]:
    return lambda images: session.run_together(None, {"image": images})[0]


def one_by_one(session: Session) -> Callable[[npt.NDArray[np.uint8]], Floats]:
    return lambda images: session.run_one_by_one(None, {"image": images})[0]


def distance(found: Floats, expected: Floats) -> float:
    """By how much features move relative to their length, mean over the images."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).mean())


def rewrite(source: Path, target: Path, form: Node) -> None:
    """Replace each product with a constant matrix."""
    model = onnx.load(str(source))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    added: list[TensorProto] = []
    for node in model.graph.node:
        matrix = constants.get(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
        if matrix is None:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(constants.pop(node.input[1]))
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        nodes += form(node, values.T if turned else values, added)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*constants.values(), *added])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(target))


def in_blocks(block: int) -> Node:
    """MatMulNBits."""

    def form(node: NodeProto, matrix: Floats, added: list[TensorProto]) -> Iterator[NodeProto]:
        inputs, outputs = matrix.shape
        blocks = -(-inputs // block)
        padded = np.zeros((outputs, blocks * block), np.float32)
        padded[:, :inputs] = matrix.T
        padded = padded.reshape(outputs, blocks, block)
        scale = np.maximum(np.abs(padded).max(axis=2, keepdims=True) / 127, 1e-12).astype(np.float32)
        name = node.input[1]
        added.append(numpy_helper.from_array((np.rint(padded / scale) + 128).astype(np.uint8), f"{name}_q"))
        added.append(numpy_helper.from_array(scale[..., 0], f"{name}_scale"))
        values = [node.input[0], f"{name}_q", f"{name}_scale", *(("", "", *node.input[2:]) if node.input[2:] else ())]
        kind = {"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": 4}
        yield helper.make_node("MatMulNBits", values, list(node.output), domain="com.microsoft", **kind)

    return form


def by_row(node: NodeProto, matrix: Floats, added: list[TensorProto]) -> Iterator[NodeProto]:
    """A scale for each row of the activations and each column of the matrix."""
    name, x, out = node.input[1], node.input[0], node.output[0]
    scale = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
    constants = {
        "q": np.rint(matrix / scale).astype(np.int8),
        "scale": scale,
        "axis": np.array([-1], np.int64),
        "step": np.float32(1 / 127),
        "least": np.float32(1e-12),
        "shift": np.float32(128),
        "zero": np.uint8(128),
    }
    added += [numpy_helper.from_array(np.asarray(value), f"{name}_{key}") for key, value in constants.items()]
    steps = [
        ("Abs", [x], "size"),
        ("ReduceMax", ["size", f"{name}_axis"], "largest"),
        ("Mul", ["largest", f"{name}_step"], "raw"),
        ("Max", ["raw", f"{name}_least"], "row"),
        ("Div", [x, "row"], "unit"),
        ("Round", ["unit"], "rounded"),
        ("Add", ["rounded", f"{name}_shift"], "shifted"),
        ("Cast", ["shifted"], "uint8"),
        ("MatMulInteger", ["uint8", f"{name}_q", f"{name}_zero"], "sum"),
        ("Cast", ["sum"], "float"),
        ("Mul", ["float", f"{name}_scale"], "by_column"),
        ("Mul", ["by_column", "row"], "product"),
        *([("Add", ["product", node.input[2]], "biased")] if node.input[2:] else []),
    ]
    own = {made for _, _, made in steps}
    casts = {"uint8": {"to": TensorProto.UINT8}, "float": {"to": TensorProto.FLOAT}}
    for kind, values, made in steps:
        inputs = [f"{out}_{value}" if value in own else value for value in values]
        yield helper.make_node(kind, inputs, [out if made == steps[-1][2] else f"{out}_{made}"], **casts.get(made, {}))


if __name__ == "__main__":
    main()
