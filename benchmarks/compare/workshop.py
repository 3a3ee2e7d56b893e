"""What all systems of a comparison are built with: its settings, the builds, and whole models beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from benchmarks.compare.budget import keep_within
from benchmarks.compare.energy import Operations, model_operations
from benchmarks.compare.exchange import EncodedImage, Exchange, Work, alone
from edvit.builder.built import Built
from edvit.builder.config import BuildConfig, make_config
from edvit.builder.images import open_images, write_images
from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.parallel import Processes
from edvit.builder.jobs.progress import Reporter
from edvit.builder.jobs.runner import Runner
from edvit.builder.models.family import describe
from edvit.builder.options import COMMON, MACHINE, MODEL, TRAINING, Augment, BuildOptions, DeviceKind, ImageSizeOption
from edvit.builder.pipeline import build
from edvit.builder.report.timing import median_s
from edvit.builder.stages.base import Base, load, train
from edvit.builder.stages.data import Data, decode
from edvit.builder.stages.source import Source, open_source
from edvit.builder.train.device import devices
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import Bundle
from edvit.fleet import local_fleet
from edvit.inputs.datasets import read_split
from edvit.plan.cost import ACTIVATION_BYTES, Cost, model_cost
from edvit.runtime.wire.image_encoding import ImageEncoding, decode_images, encode_images
from edvit.shape.any import AnyArchitecture
from edvit.shape.conv import is_convnet

SAMPLES = 16
"""Validation images that exports are compared on and spikes counted on."""
BATCH = 64


OF_BUILDS: Mapping[str, Any] = BuildOptions.model_fields
"""Options that are those of `edvit build`, declared there."""


class Settings(BaseModel):
    """What is compared, on what; `python -m benchmarks.compare` makes an option of each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[str, COMMON] = OF_BUILDS["data"]
    data_root: Annotated[Path | None, COMMON] = OF_BUILDS["data_root"]
    devices: Annotated[int, COMMON] = Field(default=5, ge=1, description="Devices of every system.")
    budget_mb: Annotated[float | None, COMMON, Parameter(name="--budget")] = Field(
        default=None,
        gt=0,
        description="MB of fp32 weights that a device's models may have; default: an eighth of the ViT's.",
    )
    model: Annotated[str | None, MODEL] = OF_BUILDS["model"]
    weights: Annotated[Path | None, MODEL] = OF_BUILDS["weights"]
    image_size: ImageSizeOption = OF_BUILDS["image_size"]
    convnet: Annotated[str, MODEL] = Field(
        default="vgg9", description="Convolutional network of split-cnn: vgg5, vgg9 or vgg16."
    )
    spiking: Annotated[str, MODEL] = Field(
        default="spiking_vgg9", description="Spiking network of split-snn: spiking_vgg5, spiking_vgg9 or spiking_vgg16."
    )
    conv_size: Annotated[int, MODEL] = Field(
        default=32, ge=16, description="Pixels of each side of the convolutional networks' input."
    )
    compact: Annotated[str, MODEL] = Field(
        default="vgg5", description="Model that is small by design: a timm ViT, or a network as above."
    )
    compact_weights: Annotated[Path | None, MODEL] = Field(
        default=None, description="Weights of --compact; default: it is trained from scratch."
    )
    base_epochs: Annotated[int | None, TRAINING] = OF_BUILDS["base_epochs"]
    conv_epochs: Annotated[int, TRAINING] = Field(
        default=20, ge=0, description="Epochs of training each convolutional network, which has no pretrained weights."
    )
    recover_epochs: Annotated[int, TRAINING] = OF_BUILDS["recover_epochs"]
    views: Annotated[int | None, TRAINING] = OF_BUILDS["views"]
    augment: Annotated[Augment | None, TRAINING] = OF_BUILDS["augment"]
    device: Annotated[DeviceKind, MACHINE] = Field(
        default="cpu", description="What trains models; everything is measured on the CPU."
    )
    workers: Annotated[int | None, MACHINE] = Field(
        default=None, ge=1, description="Sub-models trained at a time; default: one for each core."
    )
    image_encoding: Annotated[ImageEncoding, MACHINE] = Field(
        default="raw",
        description="How images travel to devices in every system, as edvit serve sends them; accuracies are those of "
        "raw images.",
    )


class Workshop:
    """Builds what the systems are made of, and keeps what several of them need.

    Args:
        settings: what is compared.
        out: a folder for bundles, exports and the work folder of all builds.
        report: whom to tell.
    """

    def __init__(self, settings: Settings, out: Path, report: Reporter) -> None:
        self.settings, self.out, self.report = settings, out, report
        self._small: dict[int, tuple[Bundle, Built]] = {}

    # --- builds ----------------------------------------------------------------------------------------

    def config(self, *, devices: int, seed: int, **changes: Any) -> BuildConfig:
        """The settings of a build of the ViT, some of them changed."""
        asked = self.settings
        values: dict[str, Any] = {
            "data": asked.data,
            "data_root": asked.data_root,
            "model": asked.model,
            "weights": asked.weights,
            "image_size": asked.image_size,
            "base_epochs": asked.base_epochs,
            "recover_epochs": asked.recover_epochs,
            "views": asked.views,
            "augment": asked.augment,
            "device": asked.device,
            "fleet": local_fleet(devices),
            "seed": seed,
            "baseline": False,
        }
        if asked.workers is not None:
            values["workers"] = asked.workers
        return make_config(**{**values, **changes})

    def convnet(self, name: str) -> dict[str, Any]:
        """What changes where a convolutional network takes the ViT's place."""
        asked = self.settings
        return {"model": name, "weights": None, "image_size": asked.conv_size, "base_epochs": asked.conv_epochs}

    def built(self, name: str, config: BuildConfig) -> tuple[Bundle, Built]:
        """A build within the budget."""
        whole = open_source(config).architecture
        keep = keep_within(whole, self.budget_bytes, rotated=config.rotated)
        chosen = config.model_copy(update={"keep": str(keep)})
        return build(chosen, self.out / "bundles" / name, work=self.out / "work", report=self.report)

    @cached_property
    def budget_bytes(self) -> float:
        """Most bytes of fp32 weights that a device holds."""
        if self.settings.budget_mb is not None:
            return self.settings.budget_mb * 1e6
        whole = open_source(self.config(devices=1, seed=0)).architecture
        return model_cost(whole).weight_bytes / 8

    @cached_property
    def base(self) -> Whole:
        """The unsplit ViT, trained as for the builds of seed 0."""
        return self.whole(self.config(devices=1, seed=0))

    def compact(self, seed: int) -> Whole:
        """The model that is small by design."""
        asked = self.settings
        changes = self.convnet(asked.compact) if is_convnet(asked.compact) else {"model": asked.compact}
        return self.whole(self.config(devices=1, seed=seed, **{**changes, "weights": asked.compact_weights}))

    def whole(self, config: BuildConfig) -> Whole:
        """A whole model, trained as the base model of a build."""
        folder = WorkFolder((self.out / "work").absolute())
        source = open_source(config)
        runner = Runner(folder, Processes(config.workers), self.report)
        start, device = load(config, source), devices(config.device, config.amp)[0]
        with folder.locked():
            data = decode(runner, source, config.validation)
            base = train(runner, config, source, data, start=start, device=device)
            return Whole(config, source, data, base)

    @cached_property
    def base_accuracy(self) -> float:
        """Accuracy of the unsplit ViT in PyTorch on the test split, 0 to 1."""
        scores = self.base.scores
        return self.accuracy(self.base, lambda pixels: scores(torch.from_numpy(pixels)).numpy())

    @torch.inference_mode()
    def accuracy(self, whole: Whole, scores: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]) -> float:
        """Accuracy of a whole model on the test split, 0 to 1, by whatever gives its scores."""
        config = whole.config
        source = read_split(config.data, "test", config.data_root).with_classes(whole.data.classes)
        folder = self.folder("test")
        write_images(source, whole.source.preprocessing, folder, lambda done, total: None)
        test, right = open_images(folder), 0
        for start in range(0, len(test), BATCH):
            found = scores(test.pixels(slice(start, start + BATCH))).argmax(axis=1)
            right += int((found == test.labels[start : start + BATCH]).sum())
        return right / len(test)

    def small(self, seed: int) -> tuple[Bundle, Built]:
        """N = 1, built and scored on the test split."""
        if seed not in self._small:
            self._small[seed] = self.built(f"small-{seed}", self.config(devices=1, seed=seed))
        return self._small[seed]

    def sent(self, exchange: Exchange, images: Tensor) -> Exchange:
        """With images as they are sent.

        Args:
            exchange: with raw ones.
            images: uint8 `[batch, channels, H, W]`, what they are like; the mean of their bytes and seconds counts.
        """
        if self.settings.image_encoding == "raw":
            return exchange
        return exchange.with_image(encoded_image(images.numpy(), self.settings.image_encoding))

    def folder(self, name: str) -> Path:
        """A folder for exports, emptied."""
        made = self.out / "exports" / name
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        return made


@dataclass(frozen=True)
class Whole:
    """A whole model, trained, and what it was trained on."""

    config: BuildConfig
    source: Source
    data: Data
    base: Base

    @property
    def scores(self) -> nn.Module:
        """uint8 images `[batch, channels, H, W]` to scores `[batch, classes]`."""
        return _Scores(self.base.extractor)

    @property
    def pixels(self) -> Tensor:
        """Some validation images, uint8."""
        return samples(self.data)

    @property
    def cost(self) -> Cost:
        return model_cost(describe(self.base.model))

    def operations(self, *, int8: bool = False) -> Operations:
        """Operations that the unsplit ViT takes for one image."""
        return count(self.base.extractor, describe(self.base.model), self.pixels, int8=int8)

    def alone(self, seconds: float) -> Exchange:
        """On one device that takes so long for an image."""
        size = int(np.prod(self.source.preprocessing.shape))
        return alone(Work(seconds), size, len(self.data.classes) * ACTIVATION_BYTES)


class _Scores(nn.Module):
    """A whole model: uint8 images `[batch, channels, H, W]` to scores `[batch, classes]`."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.extractor.model.head(self.extractor(image))
        return scores


def samples(data: Data) -> Tensor:
    """Some validation images, uint8."""
    return torch.from_numpy(data.validation.pixels(slice(0, SAMPLES)))


def count(extractor: FeatureExtractor, shape: AnyArchitecture, pixels: Tensor, *, int8: bool) -> Operations:
    """Operations for one image by a model as a device runs it."""
    return model_operations(extractor.model, shape, extractor.normalise(pixels), int8=int8)


def encoded_image(images: npt.NDArray[np.uint8], encoding: ImageEncoding) -> EncodedImage:
    """What it takes to send one of these images `[batch, channels, H, W]`, on one thread of this machine."""
    payload = encode_images(images, encoding)
    return EncodedImage(
        bytes=round(len(payload) / len(images)),
        encode_s=median_s(lambda: encode_images(images, encoding)) / len(images),
        decode_s=median_s(lambda: decode_images(payload, images.shape, encoding)) / len(images),
    )
