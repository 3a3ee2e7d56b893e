"""ONNX Runtime sessions with the settings of a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from edvit.errors import ConfigError, ModelError


def open_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU with the settings of a device.

    Raises:
        ConfigError: fewer than one thread.
        ModelError: the file is no usable ONNX model.
    """
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Devices are small: no plan of buffers kept per batch size, no threads that spin between two requests.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common class, and their text is of many lines.
        raise ModelError(f"{path.name}: ONNX Runtime cannot load it ({type(error).__name__})") from None


def run_options(batch: int) -> Any:
    """The options of one run over `batch` images; None for the defaults.

    The arena keeps the memory that one image needs, which is faster; a batch gives back what it needed beyond that.
    """
    if batch == 1:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_values(kind: str, values: list[Any], expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check the inputs or outputs of a session.

    Args:
        kind: `"input"` or `"output"`, for the message.
        values: what the session declares.
        expected: by name, the type and the shape after the first axis, which is the batch, of any length.

    Raises:
        ModelError: the names, types or shapes are others.
    """
    if sorted(value.name for value in values) != sorted(expected):
        raise ModelError(f"the model's {kind}s must be named {', '.join(expected)}; build the bundle again")
    for value in values:
        dtype, shape = expected[value.name]
        if value.type != dtype or len(value.shape) != len(shape) + 1 or tuple(value.shape[1:]) != shape:
            wanted = ", ".join(map(str, ("batch", *shape)))
            raise ModelError(f"{kind} {value.name!r} is {value.type} {value.shape}, not {dtype} [{wanted}]")
        if isinstance(value.shape[0], int):
            raise ModelError(f"{kind} {value.name!r} has a fixed batch size of {value.shape[0]}; it must take any")
