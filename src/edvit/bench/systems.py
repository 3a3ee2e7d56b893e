"""The ways to use N devices that `edvit bench compare` compares, each built from the same data and measured.

| system | what it is |
|---|---|
| subspace, subspace-int8 | this project: sub-models pruned by class subspace, in fp32 and int8 |
| channels, channels-int8 | sub-models pruned by channels, as ED-ViT does (arXiv 2410.11650) |
| split-cnn | sub-models of a CNN, filters pruned by APoZ (after NNFacet, TMC 2023) |
| split-snn | sub-models of a spiking network, likewise (after EC-SNN, IJCAI 2024) |
| whole-torch, whole, whole-int8 | the unsplit ViT on one device: PyTorch, ONNX Runtime fp32, int8 |
| small | one ViT pruned to the width of a sub-model, for all classes, on one device (N = 1) |
| compact | a model that is small by design, whole, on one device |
| ensemble | N of `small`, from different seeds, their probabilities averaged |
| pipeline | the unsplit ViT, its blocks shared out (after PipeEdge, DSD 2022) |
| tokens | the unsplit ViT, its tokens shared out (after Voltage, ICDCS 2024) |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edvit.bench import layer_pipeline, token_split
from edvit.bench.budget import keep_within
from edvit.bench.energy import Operations, model_operations
from edvit.bench.exchange import EncodedImage, Exchange, FanOut, Work, alone
from edvit.bench.onnx_model import OnnxModel
from edvit.builder import checkpoint, prepare
from edvit.builder.artifacts import WorkFolder
from edvit.builder.backbone import FeatureExtractor
from edvit.builder.config import BuildConfig, make_config
from edvit.builder.export import export_module, quantise_submodel
from edvit.builder.family import describe
from edvit.builder.images import decode_images as decode_files
from edvit.builder.images import open_images
from edvit.builder.measure import onnx_session
from edvit.builder.parallel import Processes, torch_threads
from edvit.builder.pipeline import Built, build
from edvit.builder.prepare import weights_path
from edvit.builder.progress import Reporter
from edvit.bundle import Bundle
from edvit.convnet import AnyArchitecture, is_convnet
from edvit.datasets import read_split
from edvit.fleet import local_fleet
from edvit.plan.cost import ACTIVATION_BYTES, Cost
from edvit.plan.model_cost import model_cost
from edvit.runtime.image_encoding import ImageEncoding, decode_images, encode_images
from edvit.timing import median_s

SAMPLES = 16
"""Validation images that exports are compared on and spikes counted on."""
BATCH = 64


@dataclass(frozen=True)
class Settings:
    """What is compared, on what."""

    data: str
    data_root: Path | None
    devices: int
    model: str | None
    weights: Path | None
    image_size: int | None
    convnet: str
    spiking: str
    conv_size: int
    compact: str
    """A model that is small by design."""
    compact_weights: Path | None
    budget_mb: float | None
    """Most megabytes of fp32 weights a device; None is what an eighth of the ViT's parameters take."""
    base_epochs: int | None
    conv_epochs: int
    """Of convolutional networks, which have no pretrained weights."""
    recover_epochs: int
    views: int | None
    augment: str | None
    workers: int | None
    image_encoding: ImageEncoding
    """Of images on their way to devices, in every system."""


@dataclass(frozen=True)
class Measured:
    """One system with one seed."""

    system: str
    seed: int
    accuracy: float
    """On the test split, 0 to 1."""
    params: int
    """Of what the fullest device holds."""
    bytes: int
    """Of its files."""
    exchange: Exchange
    """With the seconds that each device's work takes alone, on one thread of this machine."""
    operations: Operations
    """All devices together."""

    @property
    def worst_s(self) -> float:
        """Seconds that the busiest device computes for one image."""
        programs = self.exchange.programs()[1:]
        return max(sum(step.work.seconds for step in program) for program in programs)


class Workshop:
    """Builds and measures systems, and keeps what several of them need.

    Args:
        settings: what is compared.
        out: a folder for bundles, exports and the work folder of all builds.
        report: whom to tell.
    """

    def __init__(self, settings: Settings, out: Path, report: Reporter) -> None:
        self.settings, self.out, self.report = settings, out, report
        self._small: dict[int, tuple[Bundle, Built]] = {}

    def measure(self, system: str, seed: int) -> Measured:
        """Build a system, or take up its build, and measure it.

        Raises:
            ConfigError: the budget is too small for it, or it cannot use so many devices.
            EdvitError: a build failed.
        """
        return SYSTEMS[system](self, system, seed)

    # --- builds ----------------------------------------------------------------------------------------

    def config(self, *, devices: int, seed: int, **changes: Any) -> BuildConfig:
        """Of a build of the ViT, some settings changed."""
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
        whole = prepare.open_source(config).architecture
        keep = keep_within(whole, self.budget_bytes, rotated=config.rotated)
        chosen = config.model_copy(update={"keep": str(keep)})
        return build(chosen, self.out / "bundles" / name, work=self.out / "work", report=self.report)

    @cached_property
    def budget_bytes(self) -> float:
        """Of fp32 weights a device."""
        if self.settings.budget_mb is not None:
            return self.settings.budget_mb * 1e6
        whole = prepare.open_source(self.config(devices=1, seed=0)).architecture
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
        source = prepare.open_source(config)
        context = prepare.Context(config, source, folder, self.report, Processes(config.workers))
        with folder.locked():
            data = prepare.prepare_data(context)
            return Whole(context, data, prepare.prepare_base(context, data))

    @cached_property
    def base_accuracy(self) -> float:
        """Of the unsplit ViT in PyTorch, on the test split."""
        scores = self.base.scores
        return self.accuracy(self.base, lambda pixels: scores(torch.from_numpy(pixels)).numpy())

    @torch.inference_mode()
    def accuracy(self, whole: Whole, scores: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]) -> float:
        """Of a whole model on the test split, by whatever gives its scores."""
        config = whole.context.config
        source = read_split(config.data, "test", config.data_root).with_classes(whole.data.classes)
        folder = self.folder("test")
        decode_files(source, whole.context.source.preprocessing, folder, lambda done, total: None)
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

    context: prepare.Context
    data: prepare.Data
    base: prepare.Base

    @property
    def scores(self) -> nn.Module:
        """uint8 images `[batch, channels, H, W]` to scores `[batch, classes]`."""
        return _Scores(self.base.extractor)

    @property
    def pixels(self) -> Tensor:
        """Some validation images, uint8."""
        return _samples(self.data)

    @property
    def cost(self) -> Cost:
        return model_cost(describe(self.base.model))

    def operations(self, *, int8: bool = False) -> Operations:
        """Of one image."""
        return _count(self.base.extractor, describe(self.base.model), self.pixels, int8=int8)

    def alone(self, seconds: float) -> Exchange:
        """On one device that takes so long for an image."""
        size = int(np.prod(self.context.source.preprocessing.shape))
        return alone(Work(seconds), size, len(self.data.classes) * ACTIVATION_BYTES)


def encoded_image(images: npt.NDArray[np.uint8], encoding: ImageEncoding) -> EncodedImage:
    """What it takes to send one of these images `[batch, channels, H, W]`, on one thread of this machine."""
    payload, count = encode_images(images, encoding), len(images)
    return EncodedImage(
        bytes=round(len(payload) / count),
        encode_s=median_s(lambda: encode_images(images, encoding)) / count,
        decode_s=median_s(lambda: decode_images(payload, images.shape, encoding)) / count,
    )


class _Scores(nn.Module):
    """A whole model: uint8 images `[batch, channels, H, W]` to scores `[batch, classes]`."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.extractor.model.head(self.extractor(image))
        return scores


# --- sub-models side by side ---------------------------------------------------------------------------------


def _split(workshop: Workshop, system: str, seed: int, **changes: Any) -> Measured:
    config = workshop.config(devices=workshop.settings.devices, seed=seed, **changes)
    bundle, built = workshop.built(f"{system}-{seed}", config)
    return Measured(
        system=system,
        seed=seed,
        accuracy=built.test.accuracy(built.test.fused),
        params=max(submodel.params for submodel in bundle.manifest.submodels),
        bytes=max(submodel.model.bytes for submodel in bundle.manifest.submodels),
        exchange=workshop.sent(_fan_out(bundle), _samples(built.data)),
        operations=_operations(built),
    )


def _fan_out(bundle: Bundle) -> FanOut:
    manifest = bundle.manifest
    return FanOut(
        input_bytes=int(np.prod(manifest.preprocessing.shape)),
        work=tuple(_work(bundle.model_path(submodel.model)) for submodel in manifest.submodels),
        feature_bytes=tuple(submodel.feature_dim * ACTIVATION_BYTES for submodel in manifest.submodels),
        fusion=_work(bundle.model_path(manifest.fusion.model)),
    )


def _work(path: Path) -> Work:
    return Work(OnnxModel(path).seconds())


def _operations(built: Built) -> Operations:
    """Of all sub-models; the gateway's fusion is not a device's."""
    how = built.context.source.preprocessing
    total = Operations(0.0)
    for artifact in built.split.submodels:
        model = checkpoint.load_model(weights_path(artifact))
        extractor = FeatureExtractor(model, how.mean, how.std)
        shape = describe(model).model_copy(update={"classes": 0})
        total += _count(extractor, shape, _samples(built.data), int8=built.context.config.precision == "int8")
    return total


def _samples(data: prepare.Data) -> Tensor:
    """Some validation images, uint8."""
    return torch.from_numpy(data.validation.pixels(slice(0, SAMPLES)))


def _count(extractor: FeatureExtractor, shape: AnyArchitecture, pixels: Tensor, *, int8: bool) -> Operations:
    """Of one image, by a model as a device runs it."""
    return replace(model_operations(extractor.model, shape, extractor.normalise(pixels)), int8=int8)


def _split_cnn(workshop: Workshop, system: str, seed: int) -> Measured:
    return _split(workshop, system, seed, **workshop.convnet(workshop.settings.convnet))


def _split_snn(workshop: Workshop, system: str, seed: int) -> Measured:
    return _split(workshop, system, seed, **workshop.convnet(workshop.settings.spiking))


# --- small models --------------------------------------------------------------------------------------------


def _small(workshop: Workshop, system: str, seed: int) -> Measured:
    bundle, built = workshop.small(seed)
    exchange = _fan_out(bundle)
    whole = alone(_both(exchange), exchange.input_bytes, _scores_bytes(bundle))
    params, size = _held(bundle)
    return Measured(
        system=system,
        seed=seed,
        accuracy=built.test.accuracy(built.test.fused),
        params=params,
        bytes=size,
        exchange=workshop.sent(whole, _samples(built.data)),
        operations=_operations(built),
    )


def _ensemble(workshop: Workshop, system: str, seed: int) -> Measured:
    copies = [workshop.small(seed + i) for i in range(workshop.settings.devices)]
    tests = [built.test for _, built in copies]
    scores = torch.stack([torch.from_numpy(test.fused).softmax(dim=1) for test in tests])
    exchanges = [_fan_out(bundle) for bundle, _ in copies]
    fan_out = FanOut(
        input_bytes=exchanges[0].input_bytes,
        work=tuple(_both(exchange) for exchange in exchanges),
        feature_bytes=tuple(_scores_bytes(bundle) for bundle, _ in copies),
    )
    operations = Operations(0.0)
    for _, built in copies:
        operations += _operations(built)
    return Measured(
        system=system,
        seed=seed,
        accuracy=tests[0].accuracy(scores.mean(dim=0).numpy()),
        params=max(_held(bundle)[0] for bundle, _ in copies),
        bytes=max(_held(bundle)[1] for bundle, _ in copies),
        exchange=workshop.sent(fan_out, _samples(copies[0][1].data)),
        operations=operations,
    )


def _both(exchange: FanOut) -> Work:
    """A single sub-model and what was trained as its fusion, on the same device."""
    return Work(exchange.work[0].seconds + exchange.fusion.seconds)


def _held(bundle: Bundle) -> tuple[int, int]:
    """Parameters and bytes of a device that holds a sub-model and its fusion."""
    (submodel,), fusion = bundle.manifest.submodels, bundle.manifest.fusion
    return submodel.params + fusion.params, submodel.model.bytes + fusion.model.bytes


def _scores_bytes(bundle: Bundle) -> int:
    return len(bundle.manifest.data.classes) * ACTIVATION_BYTES


# --- the whole model -----------------------------------------------------------------------------------------


def _whole(workshop: Workshop, system: str, seed: int) -> Measured:
    whole = workshop.base
    if system != "whole-torch":
        return _exported(workshop, system, seed, whole, int8=system == "whole-int8")
    scores, image = whole.scores, whole.pixels[:1]
    with torch_threads(1), torch.inference_mode():
        seconds = median_s(lambda: scores(image))
    return Measured(
        system=system,
        seed=seed,
        accuracy=workshop.base_accuracy,
        params=whole.cost.params,
        bytes=whole.cost.weight_bytes,
        exchange=workshop.sent(whole.alone(seconds), whole.pixels),
        operations=whole.operations(),
    )


def _compact(workshop: Workshop, system: str, seed: int) -> Measured:
    return _exported(workshop, system, seed, workshop.compact(seed))


def _exported(workshop: Workshop, system: str, seed: int, whole: Whole, *, int8: bool = False) -> Measured:
    """A whole model on one device, in ONNX Runtime."""
    path = workshop.folder(system) / "whole.onnx"
    export_module(whole.scores, (whole.pixels,), ["image"], "scores", path)
    if int8:
        quantise_submodel(path, whole.pixels)
    session = onnx_session(path, torch.get_num_threads())
    return Measured(
        system=system,
        seed=seed,
        accuracy=workshop.accuracy(whole, lambda pixels: session.run(None, {"image": pixels})[0]),
        params=whole.cost.params,
        bytes=path.stat().st_size,
        exchange=workshop.sent(whole.alone(OnnxModel(path).seconds()), whole.pixels),
        operations=whole.operations(int8=int8),
    )


def _pipeline(workshop: Workshop, system: str, seed: int) -> Measured:
    whole, folder = workshop.base, workshop.folder(system)
    made = layer_pipeline.build(whole.base.extractor, whole.pixels, workshop.settings.devices, folder)
    return Measured(
        system=system,
        seed=seed,
        accuracy=workshop.base_accuracy,
        params=max(made.params),
        bytes=max(path.stat().st_size for path in folder.glob("*.onnx")),
        exchange=workshop.sent(made.exchange, whole.pixels),
        operations=whole.operations(),
    )


def _tokens(workshop: Workshop, system: str, seed: int) -> Measured:
    whole, folder = workshop.base, workshop.folder(system)
    extractor = whole.base.extractor
    tokens = token_split.count_tokens(extractor)
    shares = token_split.even_shares(tokens, workshop.settings.devices)
    made = token_split.measure(token_split.TokenSplit(extractor, shares), whole.pixels[:2], folder)
    shape: Any = describe(whole.base.model)
    # Every device embeds all tokens, and makes the keys and values of all.
    again = shape.channels * shape.patch_size**2 * (tokens - shape.prefix_tokens) * shape.widths.dim
    again += sum(tokens * shape.widths.dim * 2 * block.attention for block in shape.widths.blocks)
    return Measured(
        system=system,
        seed=seed,
        accuracy=workshop.base_accuracy,
        params=whole.cost.params,
        bytes=whole.cost.weight_bytes,
        exchange=workshop.sent(made, whole.pixels),
        operations=Operations(whole.cost.flops / 2 + (len(shares) - 1) * again),
    )


SYSTEMS: Mapping[str, Callable[[Workshop, str, int], Measured]] = {
    "subspace": _split,
    "subspace-int8": partial(_split, precision="int8"),
    "channels": partial(_split, prune="channels"),
    "channels-int8": partial(_split, prune="channels", precision="int8"),
    "split-cnn": _split_cnn,
    "split-snn": _split_snn,
    "whole-torch": _whole,
    "whole": _whole,
    "whole-int8": _whole,
    "small": _small,
    "compact": _compact,
    "ensemble": _ensemble,
    "pipeline": _pipeline,
    "tokens": _tokens,
}
UNSPLIT = ("whole-torch", "whole", "whole-int8", "pipeline", "tokens")
"""The base model itself, however it runs: these are measured once. All others are built for every seed."""
