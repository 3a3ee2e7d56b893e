"""ONNX Runtime sessions with the settings of a device."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edvit.errors import ConfigError, ModelError
from edvit.runtime.engine.four_bits import MAGIC, is_container, unpack

OLDEST = (1, 23)
"""ONNX Runtime's first version that has every operator of a bundle's files (opset 23)."""
Inputs = Mapping[str, npt.NDArray[Any]]


class Session:
    """A model's file, open in ONNX Runtime (`open_session`). Thread-safe.

    The first axis of every input and of every output is the batch.

    Args:
        session: ONNX Runtime's.
        mixes_batch: rows of a batch change each other's results in it.
    """

    def __init__(self, session: Any, *, mixes_batch: bool) -> None:
        self._session = session
        self._mixes_batch = mixes_batch

    def get_inputs(self) -> list[Any]:
        """Name, type and shape of each input, as ONNX Runtime has them."""
        inputs: list[Any] = self._session.get_inputs()
        return inputs

    def get_outputs(self) -> list[Any]:
        """Name, type and shape of each output, as ONNX Runtime has them."""
        outputs: list[Any] = self._session.get_outputs()
        return outputs

    def run(self, names: Sequence[str] | None, inputs: Inputs) -> list[npt.NDArray[Any]]:
        """Run a batch; each row of an output depends on its own row of the inputs alone, to float32's rounding.

        Args:
            names: of the outputs to return; None for all.
            inputs: by name, all of the same length.
        """
        one_by_one = self._mixes_batch and _length(inputs) > 1
        return self.run_one_by_one(names, inputs) if one_by_one else self.run_together(names, inputs)

    def run_one_by_one(self, names: Sequence[str] | None, inputs: Inputs) -> list[npt.NDArray[Any]]:
        """As `run`, one row at a time: each row has the very bits that it has alone."""
        rows = [
            self.run_together(names, {name: value[row : row + 1] for name, value in inputs.items()})
            for row in range(_length(inputs))
        ]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def run_together(self, names: Sequence[str] | None, inputs: Inputs) -> list[npt.NDArray[Any]]:
        """As `run`, but the rows of a file that mixes its batch change each other's results."""
        outputs: list[npt.NDArray[Any]] = self._session.run(names, dict(inputs), _run_options(_length(inputs)))
        return outputs


def open_session(path: Path, threads: int) -> Session:
    """Open a model's file on the CPU with the settings of a device.

    Args:
        threads: CPU threads of one run.

    Raises:
        ConfigError: fewer than one thread.
        ModelError: the file is no usable ONNX model, nor one in four bits (`four_bits`), which is unpacked in memory.
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
    with _as_onnx(path) as file:
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # ONNX Runtime's exceptions have no common class, and their text is of many lines.
            raise ModelError(f"{path.name}: {why_not_loaded(onnxruntime.__version__, error)}") from None
        return Session(session, mixes_batch=_mixes_batch(file))


@contextmanager
def _as_onnx(path: Path) -> Iterator[Path]:
    """The model as an ONNX file: itself, or what a container in four bits holds, in a file in memory."""
    try:
        with path.open("rb") as file:
            packed = is_container(file.read(len(MAGIC)))
    except OSError as error:
        raise ModelError(f"{path.name}: cannot be read ({error.strerror})") from None
    if not packed:
        yield path
        return
    # Not given to ONNX Runtime as bytes: its session would keep them.
    with os.fdopen(os.memfd_create("edvit-model"), "wb") as unpacked:
        try:
            with path.open("rb") as container:
                unpack(container, unpacked)
            unpacked.flush()
        except ModelError as error:
            raise ModelError(f"{path.name}: {error}") from None
        yield Path(f"/proc/self/fd/{unpacked.fileno()}")


def why_not_loaded(version: str, error: Exception) -> str:
    """Why ONNX Runtime of this version could not load a file."""
    oldest = ".".join(map(str, OLDEST))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        return f"ONNX Runtime {version} is too old for it, {oldest} is needed: pip install 'onnxruntime>={oldest}'"
    return f"ONNX Runtime cannot load it ({type(error).__name__}, in version {version})"


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _mixes_batch(path: Path) -> bool:
    """Whether rows of a batch change each other's results.

    ONNX Runtime's dynamic quantisation (`DynamicQuantizeLinear`, `DynamicQuantizeMatMul`) scales the activations of a
    whole batch by their largest value. A session does not tell its operators, but their names stand in the file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0


def _run_options(batch: int) -> Any:
    """The options of one run over `batch` rows; None for the defaults.

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
