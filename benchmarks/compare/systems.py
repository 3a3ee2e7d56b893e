"""The ways to use N devices that `python -m benchmarks.compare` compares, each built from the same data and measured.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare import layer_pipeline, token_split
from benchmarks.compare.energy import Operations
from benchmarks.compare.exchange import Exchange, FanOut, Work, alone
from benchmarks.compare.onnx_model import OnnxModel
from benchmarks.compare.workshop import Whole, Workshop, count, samples
from edvit.builder.built import Built
from edvit.builder.export.onnx_file import export_module, quantise_submodel
from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.models import checkpoint
from edvit.builder.models.family import describe
from edvit.builder.report.timing import median_s
from edvit.builder.stages.base import weights_path
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import Bundle
from edvit.plan.cost import ACTIVATION_BYTES
from edvit.runtime.engine.session import open_session


@dataclass(frozen=True)
class Measured:
    """One system with one seed."""

    system: str
    seed: int
    accuracy: float
    """On the test split, 0 to 1."""
    params: int
    """Parameters that the fullest device holds."""
    bytes: int
    """Bytes of the fullest device's files."""
    exchange: Exchange
    """With the seconds that each device's work takes alone, on one thread of this machine."""
    operations: Operations
    """All devices together."""

    @property
    def worst_s(self) -> float:
        """Seconds that the busiest device computes for one image."""
        programs = self.exchange.programs()[1:]
        return max(sum(step.work.seconds for step in program) for program in programs)


def measure(workshop: Workshop, system: str, seed: int) -> Measured:
    """Build a system, or take up its build, and measure it.

    Raises:
        ConfigError: the budget is too small for it, or it cannot use so many devices.
        EdvitError: a build failed.
    """
    return SYSTEMS[system](workshop, system, seed)


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
        exchange=workshop.sent(_fan_out(bundle), samples(built.data)),
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
    """Operations of all sub-models; the gateway's fusion is not a device's."""
    how = built.source.preprocessing
    total = Operations(0.0)
    for artifact in built.fused.recovered:
        model = checkpoint.load_model(weights_path(artifact))
        extractor = FeatureExtractor(model, how.mean, how.std)
        shape = describe(model).model_copy(update={"classes": 0})
        total += count(extractor, shape, samples(built.data), int8=built.config.precision == "int8")
    return total


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
        exchange=workshop.sent(whole, samples(built.data)),
        operations=_operations(built),
    )


def ensemble_seeds(seed: int, devices: int) -> range:
    """Seeds of an ensemble's members. No two ensembles share one, or their range over seeds would be too narrow."""
    return range(seed * devices, (seed + 1) * devices)


def _ensemble(workshop: Workshop, system: str, seed: int) -> Measured:
    copies = [workshop.small(member) for member in ensemble_seeds(seed, workshop.settings.devices)]
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
        exchange=workshop.sent(fan_out, samples(copies[0][1].data)),
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
    session = open_session(path, torch.get_num_threads())
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
