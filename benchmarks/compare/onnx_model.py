"""One ONNX file on one thread, bytes in and bytes out: what a device of a comparison computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edvit.builder.report.timing import median_s
from edvit.errors import ModelError
from edvit.runtime.engine.session import open_session

_DTYPES: dict[str, np.dtype[Any]] = {"tensor(uint8)": np.dtype("u1"), "tensor(float)": np.dtype("<f4")}


class OnnxModel:
    """A session with the settings of the product's devices (`edvit.runtime.engine.session`), one thread.

    The first input is what arrives; the batch is 1. Every other input is ones (a fusion's `present`: all are there).

    Raises:
        ModelError: the file is no usable ONNX model, or its first input is neither uint8 nor float32.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._session = open_session(path, threads=1)
        first, *others = self._session.get_inputs()
        if first.type not in _DTYPES or any(other.type != "tensor(float)" for other in others):
            raise ModelError(f"{path.name}: it takes {first.type}, not bytes or float32")
        self._first, self._dtype, self._shape = first.name, _DTYPES[first.type], _one(first.shape)
        self._ones = {other.name: np.ones(_one(other.shape), np.float32) for other in others}

    @property
    def input_bytes(self) -> int:
        """Bytes of the first input, one image."""
        return math.prod(self._shape) * self._dtype.itemsize

    def run(self, payload: bytes) -> bytes:
        """The first input, C order and little-endian, to the first output likewise.

        Raises:
            ModelError: the payload has another size than the input.
        """
        if len(payload) != self.input_bytes:
            raise ModelError(f"{self._name}: {len(payload)} bytes arrived where it takes {self.input_bytes}")
        value = np.frombuffer(payload, self._dtype).reshape(self._shape)
        output: npt.NDArray[Any] = self._session.run(None, {self._first: value, **self._ones})[0]
        return output.tobytes()

    def seconds(self, runs: int = 30, warm_up: int = 3) -> float:
        """Median seconds of one run with nothing else in this process."""
        payload = np.zeros(self.input_bytes, np.uint8).tobytes()
        return median_s(lambda: self.run(payload), runs, warm_up)


def _one(shape: list[int | str]) -> tuple[int, ...]:
    """A shape of which everything that is free is 1."""
    return tuple(length if isinstance(length, int) else 1 for length in shape)
