"""Stage `test`: the test images, measured here and nowhere else, through the very files that devices will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edvit.builder.config import BuildConfig
from edvit.builder.export.onnx_file import export_module
from edvit.builder.export.onnx_form import OPSET
from edvit.builder.images import ImageSet, open_images
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.job import Job, Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.stages.base import Base
from edvit.builder.stages.data import Decode
from edvit.builder.stages.export import SAMPLES, SUBMODEL_FILE, load_head
from edvit.builder.stages.fuse import FUSION_FILE, Fused
from edvit.builder.train.device import TorchDevice
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import Metric
from edvit.errors import BuildError, DataError
from edvit.inputs.datasets import LabelledImages, read_split
from edvit.inputs.preprocess import Preprocessing
from edvit.runtime.engine.session import open_session
from edvit.units import counted

Floats = npt.NDArray[np.float32]
BATCH = 64
SCORES = "scores.npz"
BASE_FILE = "base.onnx"


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
        images: the images themselves.
    """

    __test__ = False  # not a test case for pytest

    labels: npt.NDArray[np.int64]
    base: Floats
    fused: Floats
    without: Mapping[str, Floats]
    alone: Floats
    baseline: Floats | None
    images: ImageSet

    def accuracy(self, scores: Floats) -> float:
        """Share of test images whose highest score is their label."""
        return float((scores.argmax(axis=1) == self.labels).mean())

    def own_correct(self, submodel: int, classes: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether a sub-model alone is accurate on each image of its own classes, told from every other class."""
        own = np.isin(self.labels, classes)
        return np.asarray(self.alone[submodel][own].argmax(axis=1) == self.labels[own])

    def correct(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Whether each answer is its image's label, `[n]`, by the name of the metric that is their share."""
        scores = {"base": self.base, "fused": self.fused}
        if self.baseline is not None:
            scores["n1"] = self.baseline
        scores |= {f"submodel-{i}": of_one for i, of_one in enumerate(self.alone)}
        scores |= {f"fused-without-{device}": of_rest for device, of_rest in self.without.items()}
        return {name: found.argmax(axis=1) == self.labels for name, found in scores.items()}

    def metrics(self) -> tuple[Metric, ...]:
        """The accuracies that the manifest records."""
        return tuple(Metric(name=name, value=float(c.mean()), split="test") for name, c in self.correct().items())


class Sessions:
    """Exported files, opened on the CPU.

    Args:
        files: each with a sub-model's file.
        fusion: of these sub-models.
        threads: of each session.
    """

    def __init__(self, files: Sequence[Artifact], fusion: Artifact, threads: int) -> None:
        self._submodels = [open_session(artifact.folder / SUBMODEL_FILE, threads) for artifact in files]
        self._fusion = open_session(fusion.folder / FUSION_FILE, threads)

    def features(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Concatenated features `[batch, sum of dims]`; image by image, as devices are asked, to the same bits."""
        inputs = {"image": pixels}
        return np.concatenate([session.run_one_by_one(None, inputs)[0] for session in self._submodels], axis=1)

    def fuse(self, features: Floats, present: Floats | None = None) -> Floats:
        """Scores `[batch, classes]`; all features are present unless said otherwise."""
        if present is None:
            present = np.ones((len(features), len(self._submodels)), np.float32)
        scores: Floats = self._fusion.run_one_by_one(None, {"features": features, "present": present})[0]
        return scores


@dataclass(frozen=True)
class Score(Resumable):
    """Scores the test images with the base model and with the files that devices will run.

    Attributes:
        images: the test images, decoded.
        base: the base model.
        submodels: each sub-model's files, device and head.
        fusion: the fusion of all of them.
        baseline: N = 1 at the same width, its file and its fusion; None where it was not built.
        where: what runs the base model.
        extractor: the base model, loaded.
    """

    STAGE: ClassVar[str] = "test"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("onnxruntime", "timm", "torch")

    images: ImageSet
    base: Artifact
    devices: tuple[str, ...]
    exported: tuple[Artifact, ...]
    files: tuple[Artifact, ...]
    fusion: Artifact
    baseline: tuple[Artifact, ...] | None
    where: TorchDevice = unkeyed()
    extractor: FeatureExtractor = unkeyed()

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        scores: dict[str, Any] = self._scores(resume, progress)
        np.savez(folder / SCORES, **scores)
        return {"images": len(self.images)}

    def _scores(self, resume: Checkpoint | None, progress: Progress) -> dict[str, npt.NDArray[Any]]:
        whole = self.extractor.to(self.where.name)
        heads = [load_head(artifact) for artifact in self.exported]
        sessions = Sessions(self.files, self.fusion, torch.get_num_threads())
        alone = Sessions(self.baseline[:1], self.baseline[1], torch.get_num_threads()) if self.baseline else None
        batches = list(range(0, len(self.images), BATCH))
        state = None if resume is None else resume.load()
        found: dict[str, list[Floats]] = {}
        if state is not None:
            found = {name: [part.numpy() for part in parts] for name, parts in state["scores"].items()}
        first = len(found.get("base", ()))

        def keep(name: str, scores: Floats) -> None:
            found.setdefault(name, []).append(scores)

        for step, start in enumerate(batches[first:], first):
            pixels = self.images.pixels(slice(start, start + BATCH))
            with torch.inference_mode(), self.where.default():
                keep("base", whole.model.head(whole(self.where.move(torch.from_numpy(pixels)))).cpu().numpy())
            features = sessions.features(pixels)
            keep("fused", sessions.fuse(features))
            for device in dict.fromkeys(self.devices):
                present = np.array([[other != device for other in self.devices]] * len(pixels), dtype=np.float32)
                keep(f"without/{device}", sessions.fuse(features, present))
            with torch.inference_mode():
                parts = torch.split(torch.from_numpy(features), [head.in_features for head in heads], dim=1)
                keep("alone", np.stack([head(part).numpy() for head, part in zip(heads, parts, strict=True)]))
            if alone is not None:
                keep("baseline", alone.fuse(alone.features(pixels)))
            progress(step + 1, len(batches))
            if resume is not None and (resume.due or step + 1 == len(batches)):
                scored = {name: [torch.from_numpy(part) for part in parts] for name, parts in found.items()}
                resume.save({"scores": scored}, step + 1, len(batches))
        whole.cpu()  # latencies are measured there
        return {name: np.concatenate(parts, axis=1 if name == "alone" else 0) for name, parts in found.items()}


def run_test(
    runner: Runner,
    source: LabelledImages,
    preprocessing: Preprocessing,
    base: Base,
    fused: Fused,
    *,
    devices: Sequence[str],
    baseline: Fused | None,
    where: TorchDevice,
) -> TestResult:
    """Measure everything on the test images.

    Args:
        source: the test images, none of them decoded, labelled as the base model's outputs are.
        devices: the device of each sub-model, in their order.
        where: what runs the base model.

    Raises:
        DataError: an image cannot be read.
    """
    decoded = runner.make(Decode.of(source, preprocessing), "decoding", line=Score.STAGE)
    images = open_images(decoded.folder)
    job = Score(
        images=images,
        base=base.artifact,
        devices=tuple(devices),
        exported=fused.exported,
        files=fused.files,
        fusion=fused.fusion,
        baseline=None if baseline is None else (*baseline.files, baseline.fusion),
        where=where,
        extractor=base.extractor,
    )
    artifact = runner.make(job, counted(len(images), "image"))
    with np.load(artifact.folder / SCORES) as arrays:
        return TestResult(
            labels=images.labels,
            base=arrays["base"],
            fused=arrays["fused"],
            without={device: arrays[f"without/{device}"] for device in dict.fromkeys(devices)},
            alone=arrays["alone"],
            baseline=arrays["baseline"] if baseline else None,
            images=images,
        )


@dataclass(frozen=True)
class ExportBase(Job):
    """Writes the base model as an ONNX file, to be timed; no bundle holds it.

    Attributes:
        base: the base model.
        compared: images on which the file is compared with PyTorch.
        extractor: the base model, loaded.
        opset: of the ONNX file.
    """

    STAGE: ClassVar[str] = "test"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "timm", "torch")

    base: Artifact
    compared: ImageSet
    extractor: FeatureExtractor = unkeyed()
    opset: int = OPSET

    def run(self, folder: Path, progress: Progress) -> Note:
        whole = nn.Sequential(self.extractor, self.extractor.model.head)
        pixels = torch.from_numpy(self.compared.pixels())
        export_module(whole, (pixels,), ["image"], "logits", folder / BASE_FILE)
        return {}


def export_base(runner: Runner, base: Base, validation: ImageSet) -> Path | None:
    """The base model as an ONNX file, `image` -> `logits`; None where it cannot be exported.

    Its latency is a figure of the report alone, and no reason to lose a build.
    """
    compared = validation.take(np.arange(min(SAMPLES, len(validation))))
    try:
        artifact = runner.make(ExportBase(base.artifact, compared, base.extractor), "base in ONNX")
    except BuildError:
        return None
    return artifact.folder / BASE_FILE


def open_test(config: BuildConfig, classes: Sequence[str]) -> LabelledImages:
    """The test images, none of them decoded.

    Raises:
        DataError: the test split is missing or empty, or its classes are not those of the training split.
    """
    source = read_split(config.data, "test", config.data_root, config.split_by).with_classes(classes)
    if not len(source):
        raise DataError(f"{config.data}: the test split has no images")
    return source
