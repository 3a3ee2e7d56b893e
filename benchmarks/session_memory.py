"""Resident memory of one more ONNX Runtime session, next to what the plan predicts for its sub-model.

    python benchmarks/session_memory.py

Measured in a fresh process without torch for each model. The first session there is not counted: it pays for the
engine itself.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

MODELS = (("deit_tiny_patch16_224", 1), ("deit_tiny_patch16_224", 2), ("vit_base_patch16_224", 10))
SESSIONS = 5


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session on one thread, as a device runs it, after two images."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        opened.run(None, {"image": np.zeros((1, 3, 224, 224), np.uint8)})
    return opened


def growth(path: Path) -> list[int]:
    """Bytes by which the process grows with each further session."""
    process = psutil.Process()
    held = [session(path)]
    grown = []
    for _ in range(SESSIONS):
        before = process.memory_info().rss
        held.append(session(path))
        grown.append(process.memory_info().rss - before)
    return grown


def export(name: str, heads_pruned: int, path: Path) -> int:
    """Write a sub-model with random weights; its predicted peak memory, bytes."""
    import torch

    from edvit.builder.export.onnx_file import export_submodel
    from edvit.builder.vit import backbone
    from edvit.plan.cost import model_cost
    from edvit.shape.vit import pruned_widths

    torch.set_num_threads(1)
    base = backbone.describe(backbone.template(name, classes=0))
    model = backbone.create(name, classes=0, widths=pruned_widths(base.widths, heads_pruned)).eval()
    half = (0.5, 0.5, 0.5)
    images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    export_submodel(backbone.FeatureExtractor(model, half, half).eval(), images, path)
    return model_cost(backbone.describe(model)).peak_memory_bytes


def main() -> None:
    print(f"{'model':<24}{'h_p':>4}{'predicted':>12}{'median':>10}{'range':>16}{'ratio':>7}")
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for name, heads_pruned in MODELS:
            path = Path(folder) / f"{name}-{heads_pruned}.onnx"
            predicted = export(name, heads_pruned, path)
            with fresh.Pool(1) as pool:
                grown = pool.apply(growth, (path,))
            median = statistics.median(grown)
            spread = f"{min(grown) / 1e6:.1f}–{max(grown) / 1e6:.1f} MB"
            print(
                f"{name:<24}{heads_pruned:>4}{predicted / 1e6:>9.1f} MB{median / 1e6:>7.1f} MB"
                f"{spread:>16}{median / predicted:>7.2f}"
            )


if __name__ == "__main__":
    main()
