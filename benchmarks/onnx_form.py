"""What a build exports against the exporter's own graph of the same sub-model, side by side, on one thread.

    python benchmarks/onnx_form.py --model deit_tiny_patch16_224 --img-size 64 --keep 1/3

Random weights: times do not depend on their values. Each round times every row, so that a busy machine slows all.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import torch

from edvit.builder.export import onnx_file as export
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.plan.keep import heads_pruned_at, parse_keep
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.shape.vit import pruned_widths

GREY = (0.5, 0.5, 0.5)
PLAIN_OPSET = 20
"""What builds wrote before."""
CALLS = 10
"""Calls of one row in one round, one right after the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--keep", default="1/3")
    parser.add_argument("--attention", choices=("dims", "heads"), default="dims")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = backbone.describe(backbone.template(args.model, image_size=args.img_size, classes=0))
    steps = shape.heads if args.attention == "heads" else shape.keep_steps
    widths = pruned_widths(shape.widths, heads_pruned_at(parse_keep(args.keep), steps, args.attention), args.attention)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, args.img_size, args.img_size), dtype=np.uint8)
    print(f"{args.model} at {args.img_size} px, keep {args.keep} by {args.attention}, one thread, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for prune in ("subspace", "channels"):
            model = backbone.create(
                args.model, image_size=args.img_size, classes=0, widths=widths, rotated=prune == "subspace"
            )
            files = write(FeatureExtractor(model, GREY, GREY).eval(), image, Path(folder) / prune)
            report(prune, files, timed(files, image, widths.dim, args.rounds))


def write(extractor: FeatureExtractor, image: np.ndarray, folder: Path) -> dict[str, Path]:
    """Both graphs, in both precisions."""
    folder.mkdir()
    images = torch.from_numpy(np.concatenate([image, image[..., ::-1]]))
    files = {name: folder / f"{name}.onnx" for name in ("own", "form", "own-int8", "form-int8")}
    with patch.object(export, "onnx_form", lambda module: module), patch.object(export, "OPSET", PLAIN_OPSET):
        export.export_submodel(extractor, images, files["own"])
    export.export_submodel(extractor, images, files["form"])
    for name in ("own", "form"):
        shutil.copy(files[name], files[f"{name}-int8"])
        export.quantise_submodel(files[f"{name}-int8"], images)
    return files


def timed(files: dict[str, Path], image: np.ndarray, dim: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds an image, round by round."""
    engines = {
        name: SubModelEngine(path, channels=image.shape[1], image_size=image.shape[-1], feature_dim=dim)
        for name, path in files.items()
    }
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                engine.run(image)
            found[name].append((time.perf_counter() - start) / CALLS * 1e3)
    return found


def report(prune: str, files: dict[str, Path], times: dict[str, list[float]]) -> None:
    """One line a precision."""
    for precision, end in (("fp32", ""), ("int8", "-int8")):
        own, form = times[f"own{end}"], times[f"form{end}"]
        ratios = np.array(own) / np.array(form)
        nodes = [len(onnx.load(str(files[f"{name}{end}"])).graph.node) for name in ("own", "form")]
        low, high = np.percentile(ratios, [10, 90])
        print(
            f"{prune:9} {precision}  operators {nodes[0]:4} → {nodes[1]:4}   "
            f"{statistics.median(own):7.3f} → {statistics.median(form):7.3f} ms   "
            f"{statistics.median(ratios):.2f}× ({low:.2f} – {high:.2f})"
        )


if __name__ == "__main__":
    main()
