"""The inputs of a graph's products over calibration images, with the products before them already replaced.

The graph is run from one product to the next, so that every operator runs once and a product's new weights reach all
that comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

Values = dict[str, npt.NDArray[np.generic]]
"""What a graph computes, by name."""
Replace = Callable[[str, npt.NDArray[np.float32], npt.NDArray[np.float64]], npt.NDArray[np.float32]]
"""From a weight's name, the weight `[inputs, outputs]` and the sum over its inputs `x` of `x xᵀ` to another weight."""


def replace_weights(model: ModelProto, names: Iterable[str], batches: Sequence[Values], replace: Replace) -> None:
    """Replace weights of products, in the order of the graph.

    Args:
        model: in fp32; changed in place.
        names: of the constants to replace, each the second input of a `Gemm` or a `MatMul`.
        batches: the graph's inputs, one or more batches.
        replace: called once for each name.
    """
    wanted = set(names)
    constants = {constant.name: constant for constant in model.graph.initializer}
    reached = [dict(batch) for batch in batches]
    pending: list[NodeProto] = []
    later = _last_uses(model)
    for number, node in enumerate(model.graph.node):
        weight = node.input[1] if node.op_type in ("Gemm", "MatMul") else ""
        if weight in wanted:
            wanted.remove(weight)
            _advance(model, pending, reached, at=number, later=later)
            pending.clear()
            turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            values = numpy_helper.to_array(constants[weight])
            hessian = _hessian(batch[node.input[0]] for batch in reached)
            found = replace(weight, values.T if turned else values, hessian)
            found = np.ascontiguousarray(found.T if turned else found)
            constants[weight].CopyFrom(numpy_helper.from_array(found, weight))
        pending.append(node)


def _last_uses(model: ModelProto) -> dict[str, int]:
    """By name of a value, the number of the last operator that reads it."""
    return {name: number for number, node in enumerate(model.graph.node) for name in node.input}


def _hessian(inputs: Iterable[npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] | float = 0.0
    for batch in inputs:
        rows = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        total = total + rows.T @ rows
    return np.asarray(total)


def _advance(
    model: ModelProto, nodes: Sequence[NodeProto], batches: Sequence[Values], *, at: int, later: dict[str, int]
) -> None:
    """Run some operators on each batch; of what is known, what operator `at` or a later one reads is kept."""
    made = [name for node in nodes for name in node.output if later.get(name, -1) >= at]
    if made:
        session = onnxruntime.InferenceSession(
            _part(model, nodes, made, batches[0]).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        read = [value.name for value in session.get_inputs()]
        for batch in batches:
            outputs = session.run(made, {name: batch[name] for name in read})
            batch.update(zip(made, outputs, strict=True))
    for batch in batches:
        for name in [name for name in batch if later.get(name, -1) < at]:
            del batch[name]


def _part(model: ModelProto, nodes: Sequence[NodeProto], made: Sequence[str], known: Values) -> ModelProto:
    """Some operators of a graph as a graph of their own."""
    inside = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name} - inside
    inputs = [_value(name, helper.np_dtype_to_tensor_dtype(known[name].dtype)) for name in sorted(read & set(known))]
    outputs = [ValueInfoProto(name=name) for name in made]
    constants = [constant for constant in model.graph.initializer if constant.name in read]
    return helper.make_model(
        helper.make_graph(nodes, "part", inputs, outputs, constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )


def _value(name: str, kind: int) -> ValueInfoProto:
    """A value of any shape."""
    value = ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = kind
    return value
