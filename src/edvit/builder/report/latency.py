"""Latencies of a build's models on this machine, for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.report.timing import interleaved_s
from edvit.builder.stages.base import Base
from edvit.builder.stages.fuse import Fused
from edvit.builder.stages.test import Sessions
from edvit.runtime.engine.session import open_session

BASE_TORCH, BASE_ONNX = "base in PyTorch", "base in ONNX Runtime"
BASE = (BASE_TORCH, BASE_ONNX)
"""The unsplit model, by what runs it."""
QUARTILES = (0.25, 0.5, 0.75)

Call = Callable[[], object]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Latency:
    """Seconds per image: the median over rounds, and the middle half of them."""

    low_s: float
    median_s: float
    high_s: float

    @classmethod
    def of(cls, seconds: Seconds) -> Latency:
        """The quartiles of the seconds that each round took, `[rounds]`."""
        return cls(*(float(value) for value in np.quantile(seconds, QUARTILES)))


def measure_latencies(
    base: Base,
    exported: Path | None,
    fused: Fused,
    image: npt.NDArray[np.uint8],
    *,
    devices: Sequence[str],
    baseline: Fused | None,
) -> dict[str, Latency]:
    """Seconds per image on one thread of this machine, by the name of their metric; those of the base, by `BASE`.

    The base runs in PyTorch and in ONNX Runtime, both fp32. `fused` is the device that takes longest with all its
    sub-models, one after the other, and then the fusion, as on devices that work side by side, without a network; `n1`
    likewise from the baseline's own files. All are timed in turns.

    Args:
        exported: the base as an ONNX file; None where there is none, and then no `BASE_ONNX`.
        image: a real one, uint8 `[1, channels, height, width]`.
        devices: the device of each sub-model, in their order.
        baseline: N = 1 at the same width; None where it was not built.
    """
    calls: dict[str, Call] = {BASE_TORCH: _base_call(base, image)}
    if exported is not None:
        calls[BASE_ONNX] = _onnx_call(exported, image=image)
    calls |= _calls("fused", fused, image)
    if baseline is not None:
        calls |= _calls("n1", baseline, image)
    with torch_threads(1), torch.inference_mode():
        seconds = interleaved_s(calls)
    found = {name: seconds[name] for name in BASE if name in seconds}
    found["fused"] = _side_by_side(seconds, "fused", devices)
    if baseline is not None:
        found["n1"] = _side_by_side(seconds, "n1", ["one"])
    found |= {f"submodel-{i}": seconds[f"fused/{i}"] for i in range(len(devices))}
    return {name: Latency.of(taken) for name, taken in found.items()}


def faster_base(latencies: Mapping[str, Latency]) -> Latency:
    """The base's latency in what runs it faster: a speed-up is against that."""
    return min((latencies[name] for name in BASE if name in latencies), key=lambda one: one.median_s)


def _side_by_side(seconds: Mapping[str, Seconds], owner: str, devices: Sequence[str]) -> Seconds:
    """Seconds of an answer, `[rounds]`: of the device that takes longest by its median, and of the fusion.

    Not the longest of each round: with many devices that is often one which the machine has just interrupted.
    """
    busy: dict[str, Seconds] = {}
    for i, device in enumerate(devices):
        busy[device] = busy.get(device, 0) + seconds[f"{owner}/{i}"]
    return max(busy.values(), key=lambda taken: float(np.median(taken))) + seconds[f"{owner}/fusion"]


def _calls(owner: str, fused: Fused, image: npt.NDArray[np.uint8]) -> dict[str, Call]:
    """`OWNER/0`, `OWNER/1`, … run a sub-model, `OWNER/fusion` the fusion."""
    features = Sessions(fused.files, fused.fusion, threads=1).features(image)
    present = np.ones((1, len(fused.groups)), np.float32)
    calls = {f"{owner}/{i}": _onnx_call(fused.submodel_path(i), image=image) for i in range(len(fused.groups))}
    return calls | {f"{owner}/fusion": _onnx_call(fused.fusion_path, features=features, present=present)}


def _onnx_call(path: Path, **inputs: npt.NDArray[Any]) -> Call:
    session = open_session(path, threads=1)
    return lambda: session.run(None, inputs)


def _base_call(base: Base, image: npt.NDArray[np.uint8]) -> Call:
    pixels = torch.from_numpy(image)
    return lambda: base.model.head(base.extractor(pixels))
