"""A whole Vision Transformer cut between its blocks, a stage a device, one after the other.

After PipeEdge (Hu et al., *PipeEdge: Pipeline Parallelism for Large-Scale Model Inference on Heterogeneous Edge
Devices*, DSD 2022), for equal devices and without its quantised activations: the partition is the one whose slowest
stage is quickest. Nothing is pruned, so the answer is the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.compare.exchange import Chain, Work
from benchmarks.compare.onnx_model import OnnxModel
from edvit.builder.export.onnx_file import check_close, export_module
from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.report.timing import median_s
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import ConfigError, ModelError

Ranges = tuple[tuple[int, int], ...]
"""The first block of each pipeline stage, and the one after its last."""


@dataclass(frozen=True)
class LayerPipeline:
    """A model in stages."""

    ranges: Ranges
    params: tuple[int, ...]
    """Parameters of each pipeline stage."""
    exchange: Chain
    """With the ONNX file of every stage, and its seconds alone on one thread."""


class Stage(nn.Module):
    """Blocks `start` to `stop` of a model with what comes before the first and after the last one.

    The first stage takes uint8 images `[batch, channels, H, W]`, every other the residual stream, float32 `[batch,
    tokens, dim]`. The last one gives scores `[batch, classes]`, every other the stream.
    """

    def __init__(self, extractor: FeatureExtractor, start: int, stop: int) -> None:
        super().__init__()
        self.extractor = extractor
        self._start, self._stop = start, stop

    def forward(self, value: Tensor) -> Tensor:
        model = self.extractor.model
        stream = value if self._start else backbone.embed(model, self.extractor.normalise(value))
        if self._stop == len(model.blocks):
            return backbone.classify(model, stream, self._start)
        for block in model.blocks[self._start : self._stop]:
            stream = block(stream)
        return stream


def build(extractor: FeatureExtractor, images: Tensor, devices: int, folder: Path) -> LayerPipeline:
    """Cut a model, export every stage, compare them with the whole and time them.

    Args:
        extractor: the whole model, its head included, and its normalisation.
        images: uint8 `[batch, channels, H, W]`, at least two to compare on.
        devices: stages, at most as many as there are blocks.
        folder: where `stage-0.onnx` and so on are written; it is made if it is not there.

    Raises:
        ConfigError: more stages than blocks, or less than one.
        ModelError: the model has no head.
        BuildError: the stages one after the other do not give the model's scores.
    """
    check_head(extractor)
    extractor.eval()
    ranges = balance(block_seconds(extractor, images[:1]), devices)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        expected = extractor.model.head(extractor(images))
    value, work, sizes = images, [], []
    for index, (start, stop) in enumerate(ranges):
        stage, path = Stage(extractor, start, stop), folder / f"stage-{index}.onnx"
        last = stop == ranges[-1][1]
        export_module(stage, (value,), ["stream" if start else "image"], "scores" if last else "next", path)
        model = OnnxModel(path)
        # What the next stage is compared on is what this one's file gives, as between devices.
        found = [model.run(one.numpy().tobytes()) for one in value]
        with torch.inference_mode():
            shape = stage(value).shape
        value = torch.frombuffer(bytearray(b"".join(found)), dtype=torch.float32).view(shape)
        work.append(Work(model.seconds(), path))
        sizes.append(len(found[0]))
    check_close(value.numpy(), expected.numpy(), "the stages of the layer pipeline")
    params = tuple(stage_params(extractor.model, start, stop) for start, stop in ranges)
    return LayerPipeline(ranges, params, Chain(images[0].numel(), tuple(work), tuple(sizes)))


def stage_params(model: VisionTransformer, start: int, stop: int) -> int:
    """Parameters of a stage: of its blocks, with the embedding in the first and norm and head in the last."""

    def of(name: str) -> bool:
        if name.startswith("blocks."):
            return start <= int(name.split(".")[1]) < stop
        last = name.startswith(("norm.", "fc_norm.", "head."))
        return stop == len(model.blocks) if last else start == 0

    return sum(parameter.numel() for name, parameter in model.named_parameters() if of(name))


def check_head(extractor: FeatureExtractor) -> None:
    """Raises ModelError where a model gives no scores."""
    if extractor.model.num_classes < 1:
        raise ModelError("a model without a classifier head gives no scores to compare; use the base model")


def block_seconds(extractor: FeatureExtractor, image: Tensor, rounds: int = 15) -> list[float]:
    """Median seconds of each block in PyTorch on one thread; the first with the embedding, the last with the head.

    Args:
        image: uint8 `[1, channels, H, W]`.
    """
    count = len(extractor.model.blocks)
    seconds = []
    value = image
    with torch_threads(1), torch.inference_mode():
        for index in range(count):
            stage, given = Stage(extractor, index, index + 1), value
            seconds.append(median_s(lambda s=stage, x=given: s(x), rounds))  # type: ignore[misc]
            value = stage(value)
    return seconds


def balance(seconds: Sequence[float], stages: int) -> Ranges:
    """The partition of blocks into contiguous stages, none empty, whose slowest stage is quickest.

    Args:
        seconds: of each block.

    Raises:
        ConfigError: more stages than blocks, or less than one.
    """
    if not 1 <= stages <= len(seconds):
        raise ConfigError(f"{len(seconds)} blocks can be cut into 1 to {len(seconds)} stages, not {stages}")
    until = [0.0, *accumulate(seconds)]
    # For each end: the slowest stage of the best cuts of the blocks before it, and these cuts.
    best: list[_Cut] = [(0.0, (0,)), *[(float("inf"), ())] * len(seconds)]
    for _ in range(stages):
        best = [_one_more(best, until, end) for end in range(len(until))]
    return tuple(pairwise(best[-1][1]))


_Cut = tuple[float, tuple[int, ...]]


def _one_more(best: Sequence[_Cut], until: Sequence[float], end: int) -> _Cut:
    """The best of the cuts that end with a stage from an earlier end to this one."""
    options = [
        (max(slowest, until[end] - until[start]), (*cuts, end)) for start, (slowest, cuts) in enumerate(best[:end])
    ]
    return min(options, default=(float("inf"), ()))
