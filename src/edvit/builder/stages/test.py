"""The last stage: the test images, read here and nowhere else, through the very files that devices will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder import images
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Stage
from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.report.timing import median_s
from edvit.builder.stages import prepare
from edvit.builder.stages.split import Split
from edvit.bundle import Metric
from edvit.errors import DataError
from edvit.inputs.datasets import read_split
from edvit.runtime.device.engine import open_session
from edvit.units import counted

Floats = npt.NDArray[np.float32]
BATCH = 64


@dataclass(frozen=True)
class TestResult:
    """Scores over all classes on the test images.

    Attributes:
        labels: int64 `[n]`.
        base: float32 `[n, classes]`, the base model's.
        fused: float32 `[n, classes]`, every feature present.
        without: device name -> `[n, classes]`, that device's features absent.
        alone: float32 `[submodels, n, classes]`, each sub-model's own head for all classes.
        baseline: `[n, classes]` of N = 1 at the same width; None where it was not built.
    """

    __test__ = False  # not a test case for pytest

    labels: npt.NDArray[np.int64]
    base: Floats
    fused: Floats
    without: Mapping[str, Floats]
    alone: Floats
    baseline: Floats | None

    def accuracy(self, scores: Floats) -> float:
        """Share of test images whose highest score is their label."""
        return float((scores.argmax(axis=1) == self.labels).mean())

    def own_accuracy(self, submodel: int, classes: Sequence[int]) -> float:
        """As `accuracy`, of a sub-model alone on the images of its own classes, told from every other class."""
        own = np.isin(self.labels, classes)
        return float((self.alone[submodel][own].argmax(axis=1) == self.labels[own]).mean()) if own.any() else 0.0

    def metrics(self) -> tuple[Metric, ...]:
        """As the manifest records them."""
        values = {"base": self.accuracy(self.base), "fused": self.accuracy(self.fused)}
        if self.baseline is not None:
            values["n1"] = self.accuracy(self.baseline)
        values |= {f"submodel-{i}": self.accuracy(scores) for i, scores in enumerate(self.alone)}
        values |= {f"fused-without-{device}": self.accuracy(scores) for device, scores in self.without.items()}
        return tuple(Metric(name=name, value=value, split="test") for name, value in values.items())


class Sessions:
    """The exported files of a split, opened on the CPU."""

    def __init__(self, exported: Split, threads: int) -> None:
        count = len(exported.groups)
        self._submodels = [open_session(exported.submodel_path(i), threads) for i in range(count)]
        self._fusion = open_session(exported.fusion_path, threads)

    def features(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Concatenated features `[batch, sum of dims]`."""
        return np.concatenate([session.run(None, {"image": pixels})[0] for session in self._submodels], axis=1)

    def fuse(self, features: Floats, present: Floats | None = None) -> Floats:
        """Scores `[batch, classes]`; all features are present unless said otherwise."""
        if present is None:
            present = np.ones((len(features), len(self._submodels)), np.float32)
        scores: Floats = self._fusion.run(None, {"features": features, "present": present})[0]
        return scores


def run_test(
    context: prepare.Context,
    data: prepare.Data,
    trained: prepare.Base,
    exported: Split,
    *,
    devices: Sequence[str],
    baseline: Split | None,
) -> TestResult:
    """Measure everything on the test split.

    Args:
        devices: the device of each sub-model, in their order.

    Raises:
        DataError: the test split is missing, or its classes are not those of the training split.
    """
    config = context.config
    source = read_split(config.data, "test", config.data_root).with_classes(data.classes)
    if not len(source):
        raise DataError(f"{config.data}: the test split has no images")
    stage = Stage(
        "test",
        {
            "images": [source.stamp(i) for i in range(len(source))],
            "labels": source.labels.tolist(),
            "base": trained.artifact.digest,
            "files": _digests(exported),
            "devices": list(devices),
            "baseline": _digests(baseline) if baseline else None,
        },
    )

    def fill(folder: Path) -> dict[str, Any]:
        with context.report.bar("test", "decoding") as bar:
            images.decode_images(source, context.source.preprocessing, folder, bar)
        test = images.open_images(folder)
        with context.report.bar("test", counted(len(test), "image")) as bar:
            np.savez(folder / "scores.npz", **_scores(context, trained, exported, devices, baseline, test, bar))
        return {"images": len(test)}

    artifact = context.work.make(stage, fill)
    with np.load(artifact.folder / "scores.npz") as arrays:
        without = {device: arrays[f"without/{device}"] for device in dict.fromkeys(devices)}
        return TestResult(
            labels=arrays["labels"],
            base=arrays["base"],
            fused=arrays["fused"],
            without=without,
            alone=arrays["alone"],
            baseline=arrays["baseline"] if baseline else None,
        )


def _digests(exported: Split) -> list[str]:
    return [artifact.digest for artifact in (*exported.exports, exported.fusion)]


def _scores(  # noqa: PLR0917
    context: prepare.Context,
    trained: prepare.Base,
    exported: Split,
    devices: Sequence[str],
    baseline: Split | None,
    test: ImageSet,
    progress: Any,
) -> dict[str, Any]:
    how, where = context.source.preprocessing, context.devices[0]
    whole = trained.extractor.to(where.name)
    heads = [prepare.load_extractor(a, how).model.head for a in exported.submodels]
    sessions = Sessions(exported, torch.get_num_threads())
    alone = Sessions(baseline, torch.get_num_threads()) if baseline else None
    batches = list(range(0, len(test), BATCH))
    found: dict[str, list[Floats]] = {}

    def keep(name: str, scores: Floats) -> None:
        found.setdefault(name, []).append(scores)

    for step, start in enumerate(batches):
        pixels = test.pixels(slice(start, start + BATCH))
        with torch.inference_mode(), where.default():
            keep("base", whole.model.head(whole(where.move(torch.from_numpy(pixels)))).cpu().numpy())
        features = sessions.features(pixels)
        keep("fused", sessions.fuse(features))
        for device in dict.fromkeys(devices):
            present = np.array([[other != device for other in devices]] * len(pixels), dtype=np.float32)
            keep(f"without/{device}", sessions.fuse(features, present))
        with torch.inference_mode():
            widths = [head.in_features for head in heads]
            parts = torch.split(torch.from_numpy(features), widths, dim=1)
            keep("alone", np.stack([head(part).numpy() for head, part in zip(heads, parts, strict=True)]))
        if alone is not None:
            keep("baseline", alone.fuse(alone.features(pixels)))
        progress(step + 1, len(batches))
    scores = {name: np.concatenate(parts, axis=1 if name == "alone" else 0) for name, parts in found.items()}
    whole.cpu()  # latencies are measured there
    return {**scores, "labels": test.labels}


def latencies_s(
    trained: prepare.Base, exported: Split, data: prepare.Data, *, devices: Sequence[str], baseline: Split | None
) -> dict[str, float]:
    """Median seconds per image on one thread of this machine, by the name of the metric it belongs to.

    The base in PyTorch fp32; each sub-model in ONNX Runtime. `fused` is the device that takes longest with all its
    sub-models, one after the other, and then the fusion, as on devices that work side by side, without a network; `n1`
    likewise from the baseline's own files.

    Args:
        devices: the device of each sub-model, in their order.
        baseline: N = 1 at the same width; None where it was not built.
    """
    image = data.validation.pixels(slice(0, 1))
    submodels = _submodels_s(exported, image)
    busy = dict.fromkeys(devices, 0.0)
    for device, seconds in zip(devices, submodels, strict=True):
        busy[device] += seconds
    found = {"base": _base_s(trained, image), "fused": max(busy.values()) + _fusion_s(exported, image)}
    if baseline is not None:
        found["n1"] = sum(_submodels_s(baseline, image)) + _fusion_s(baseline, image)
    return found | {f"submodel-{i}": seconds for i, seconds in enumerate(submodels)}


def _submodels_s(exported: Split, image: npt.NDArray[np.uint8]) -> list[float]:
    return [_onnx_s(exported.submodel_path(i), image=image) for i in range(len(exported.groups))]


def _fusion_s(exported: Split, image: npt.NDArray[np.uint8]) -> float:
    features = Sessions(exported, threads=1).features(image)
    present = np.ones((1, len(exported.groups)), np.float32)
    return _onnx_s(exported.fusion_path, features=features, present=present)


def _onnx_s(path: Path, **inputs: npt.NDArray[Any]) -> float:
    session = open_session(path, threads=1)
    return median_s(lambda: session.run(None, inputs))


def _base_s(trained: prepare.Base, image: npt.NDArray[np.uint8]) -> float:
    pixels = torch.from_numpy(image)
    with torch_threads(1), torch.inference_mode():
        return median_s(lambda: trained.model.head(trained.extractor(pixels)))
