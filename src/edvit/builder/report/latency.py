"""Median latencies of a build's models on this machine, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.report.timing import median_s
from edvit.builder.stages.base import Base
from edvit.builder.stages.fuse import Fused
from edvit.builder.stages.test import Sessions
from edvit.runtime.engine.session import open_session


def latencies_s(
    base: Base, fused: Fused, image: npt.NDArray[np.uint8], *, devices: Sequence[str], baseline: Fused | None
) -> dict[str, float]:
    """Median seconds per image on one thread of this machine, by the name of the metric it belongs to.

    The base in PyTorch fp32; each sub-model in ONNX Runtime. `fused` is the device that takes longest with all its
    sub-models, one after the other, and then the fusion, as on devices that work side by side, without a network; `n1`
    likewise from the baseline's own files.

    Args:
        image: a real one, uint8 `[1, channels, size, size]`.
        devices: the device of each sub-model, in their order.
        baseline: N = 1 at the same width; None where it was not built.
    """
    submodels = _submodels_s(fused, image)
    busy = dict.fromkeys(devices, 0.0)
    for device, seconds in zip(devices, submodels, strict=True):
        busy[device] += seconds
    found = {"base": _base_s(base, image), "fused": max(busy.values()) + _fusion_s(fused, image)}
    if baseline is not None:
        found["n1"] = sum(_submodels_s(baseline, image)) + _fusion_s(baseline, image)
    return found | {f"submodel-{i}": seconds for i, seconds in enumerate(submodels)}


def _submodels_s(fused: Fused, image: npt.NDArray[np.uint8]) -> list[float]:
    return [_onnx_s(fused.submodel_path(i), image=image) for i in range(len(fused.groups))]


def _fusion_s(fused: Fused, image: npt.NDArray[np.uint8]) -> float:
    features = Sessions(fused.files, fused.fusion, threads=1).features(image)
    present = np.ones((1, len(fused.groups)), np.float32)
    return _onnx_s(fused.fusion_path, features=features, present=present)


def _onnx_s(path: Path, **inputs: npt.NDArray[Any]) -> float:
    session = open_session(path, threads=1)
    return median_s(lambda: session.run(None, inputs))


def _base_s(base: Base, image: npt.NDArray[np.uint8]) -> float:
    pixels = torch.from_numpy(image)
    with torch_threads(1), torch.inference_mode():
        return median_s(lambda: base.model.head(base.extractor(pixels)))
