"""Stages `export` and `quantise`: a sub-model's ONNX file, its features for the fusion, and its own head.

A sub-model is loaded once after recovery, here: whatever comes later needs no PyTorch model of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edvit.builder.export import onnx_file
from edvit.builder.export.onnx_form import OPSET
from edvit.builder.images import ImageSet
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.filling import fill_arrays
from edvit.builder.jobs.job import Job, Note, Resumable, unkeyed
from edvit.builder.jobs.parallel import Progress
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.family import describe
from edvit.builder.stages.base import load_extractor
from edvit.builder.train.augment import Views
from edvit.builder.train.base import features_of
from edvit.builder.train.device import TorchDevice
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import Precision
from edvit.runtime.engine import four_bits

FEATURE_BATCH = 128
FEATURES = "features.npy"
"""Features of the images that the fusion is trained on, float32 `[views x n, dim]`."""
VALIDATION = "validation.npy"
"""Features of the validation images, float32 `[n, dim]`."""
HEAD = "head.safetensors"
SUBMODEL_FILE = "submodel.onnx"
CALIBRATION = 256
"""Training images that weights in four bits are rounded by."""
CALIBRATION_BATCH = 32
SAMPLES = 8
"""Validation images on which an exported file is compared with PyTorch."""


@dataclass(frozen=True)
class Export(Resumable):
    """Writes what a sub-model leaves for the bundle and for the fusion.

    Attributes:
        submodel: the recovered sub-model.
        views: of the training set.
        count: on so many of them the fusion is trained.
        validation: the validation images.
        preprocessing: how images reach the sub-model.
        device: what computes features.
        opset: of the ONNX file.
    """

    STAGE: ClassVar[str] = "export"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "timm", "torch")

    submodel: Artifact
    views: Views
    count: int
    validation: ImageSet
    preprocessing: Preprocessing
    device: TorchDevice = unkeyed()
    opset: int = OPSET

    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        extractor = load_extractor(self.submodel, self.preprocessing)
        compared = torch.from_numpy(_sample(self.validation).pixels())
        onnx_file.export_submodel(extractor, compared, folder / SUBMODEL_FILE)
        head: nn.Linear = extractor.model.head
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, folder / HEAD)
        extractor.to(self.device.name)
        images, batches = len(self.views.images), -(-len(self.views.images) // FEATURE_BATCH)

        def write(steps: npt.NDArray[np.int64], arrays: Mapping[str, np.memmap]) -> None:
            for view, batch in zip(*np.divmod(steps, batches), strict=True):
                start = int(batch) * FEATURE_BATCH
                index = np.arange(start, min(start + FEATURE_BATCH, images))
                with torch.inference_mode():
                    of_batch = extractor(self.views.batch(int(view), index, self.device)).cpu()
                arrays[FEATURES][int(view) * images + index] = of_batch.numpy()

        dim = describe(extractor.model).feature_dim
        fill_arrays(
            folder,
            {FEATURES: (np.float32, (self.count * images, dim))},
            self.count * batches,
            write,
            batch=1,
            checkpoint=resume,
            progress=progress,
        )
        part = Checkpoint.part_of(resume, "validation")
        held_out = features_of(extractor, self.validation, device=self.device, checkpoint=part)
        np.save(folder / VALIDATION, held_out.numpy())
        return {}


@dataclass(frozen=True)
class Quantise(Job):
    """Writes an exported sub-model with int8 weights."""

    STAGE: ClassVar[str] = "quantise"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    exported: Artifact
    sample: ImageSet

    def run(self, folder: Path, progress: Progress) -> Note:
        path = folder / SUBMODEL_FILE
        shutil.copyfile(self.exported.folder / SUBMODEL_FILE, path)
        moved = onnx_file.quantise_submodel(path, torch.from_numpy(self.sample.pixels()))
        progress(1, 1)
        return {"quantisation_error": moved}


@dataclass(frozen=True)
class Pack(Job):
    """Writes an exported sub-model with weights in four bits.

    Attributes:
        exported: holds the sub-model in fp32.
        sample: images that the file is compared on.
        calibration: training images that decide how weights are rounded.
        container: version of the file's layout.
    """

    STAGE: ClassVar[str] = "quantise"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnxruntime")

    exported: Artifact
    sample: ImageSet
    calibration: ImageSet
    container: int = four_bits.VERSION

    def run(self, folder: Path, progress: Progress) -> Note:
        path = folder / SUBMODEL_FILE
        shutil.copyfile(self.exported.folder / SUBMODEL_FILE, path)
        batches = list(self.calibration.batches(CALIBRATION_BATCH))
        moved = onnx_file.pack_submodel(path, torch.from_numpy(self.sample.pixels()), batches)
        progress(1, 1)
        return {"quantisation_error": moved}


def export(
    runner: Runner,
    submodels: Sequence[Artifact],
    views: Views,
    count: int,
    *,
    validation: ImageSet,
    preprocessing: Preprocessing,
    devices: Sequence[TorchDevice],
) -> tuple[Artifact, ...]:
    """An ONNX file of every sub-model, compared with PyTorch, its features over `count` views, and its head.

    Raises:
        BuildError: ONNX Runtime and PyTorch differ.
    """
    jobs = [
        Export(submodel, views, count, validation, preprocessing, device)
        for submodel, device in zip(submodels, cycle(devices), strict=False)
    ]
    return runner.make_all(jobs, "ONNX and features")


def quantise(
    runner: Runner, exported: Sequence[Artifact], precision: Precision, *, train: ImageSet, validation: ImageSet
) -> tuple[Artifact, ...]:
    """The results that hold the sub-models' files in the precision that devices run.

    Args:
        train: training images, of which int4 is calibrated on some.
        validation: validation images, on some of which files are compared.

    Raises:
        BuildError: the features of a sub-model move too far.
    """
    if precision == "fp32":
        return tuple(exported)
    compared = _sample(validation)
    if precision == "int8":
        return runner.make_all([Quantise(artifact, compared) for artifact in exported], "int8")
    calibration = train.take(calibration_rows(len(train)))
    return runner.make_all([Pack(artifact, compared, calibration) for artifact in exported], "int4")


def calibration_rows(images: int) -> npt.NDArray[np.int64]:
    """Which of so many training images four bits are calibrated on: at most `CALIBRATION`, evenly spread."""
    rows: npt.NDArray[np.int64] = np.linspace(0, images - 1, min(CALIBRATION, images)).round().astype(np.int64)
    return rows


def _sample(validation: ImageSet) -> ImageSet:
    """The images that exported files are compared on."""
    return validation.take(np.arange(min(SAMPLES, len(validation))))


def load_head(exported: Artifact) -> nn.Linear:
    """A sub-model's own head over all classes, in evaluation mode."""
    state = load_file(exported.folder / HEAD)
    classes, dim = state["weight"].shape
    with torch.device("meta"):
        head = nn.Linear(dim, classes, bias="bias" in state)
    head.load_state_dict(state, assign=True)
    return head.eval()
