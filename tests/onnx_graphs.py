"""The smallest ONNX files that do something."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "double": TensorProto.DOUBLE}


def _save(path, nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))
    return path


def _value(name, kind, width):
    return helper.make_tensor_value_info(name, TYPES[kind], ["batch", width])


def plus(path, amount, kind, width):
    """`x` of `kind`, `[batch, width]` -> `y` float32, `x + amount`."""
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["cast", "amount"], ["y"]),
    ]
    amounts = numpy_helper.from_array(np.float32([amount]), "amount")
    return _save(path, nodes, [_value("x", kind, width)], [_value("y", "float32", width)], [amounts])


def fusion(path, width):
    """`x` and `present`, float32 `[batch, width]` -> their sum."""
    nodes = [helper.make_node("Add", ["x", "present"], ["y"])]
    inputs = [_value("x", "float32", width), _value("present", "float32", width)]
    return _save(path, nodes, inputs, [_value("y", "float32", width)])


def part(path, start, stop, kind, width):
    """`x` of `kind`, `[batch, width]` -> `y` float32 `[batch, stop - start]`, the columns of `x` there, plus 1."""
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["cast", "start", "stop", "axis"], ["columns"]),
        helper.make_node("Add", ["columns", "one"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("start", start), ("stop", stop), ("axis", 1))
    ]
    constants.append(numpy_helper.from_array(np.float32([1]), "one"))
    return _save(path, nodes, [_value("x", kind, width)], [_value("y", "float32", stop - start)], constants)


def too_wide(path):
    """An input of a kind that is never on the wire."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _save(path, nodes, [_value("x", "double", 2)], [_value("y", "double", 2)])
