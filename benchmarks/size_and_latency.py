"""The unsplit model in PyTorch against one of its sub-models as deployed, side by side, on one thread.

    python benchmarks/size_and_latency.py --model vit_base_patch16_224 --keep 2/12 --attention heads

Random weights: sizes and times do not depend on their values, and nothing is said about accuracy. Sub-models are
exported as a build exports them and run as a device runs them. The int8 rows are what `--precision int8` makes of the
same files. Each round times every row, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from edvit.builder.export.onnx_file import export_submodel, quantise_submodel
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.plan.keep import heads_pruned_at, parse_keep
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.shape.vit import AttentionMode, pruned_widths

GREY = (0.5, 0.5, 0.5)
WHOLE = "unsplit, PyTorch fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vit_base_patch16_224"])
    parser.add_argument("--keep", default="2/12")
    parser.add_argument("--attention", choices=("dims", "heads"), default="dims")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    print(f"keep ratio {args.keep}, attention by {args.attention}, one thread, {args.rounds} rounds, seed {args.seed}")
    for name in args.model:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, args.keep, args.attention, args.rounds, Path(folder))


def compare(name: str, keep: str, attention: AttentionMode, rounds: int, folder: Path) -> None:
    """Print one table."""
    base = backbone.create(name, classes=10).eval()
    architecture = backbone.describe(base)
    heads = heads_pruned_at(parse_keep(keep), architecture.heads, attention)
    widths = pruned_widths(architecture.widths, heads, attention)
    size = architecture.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8)
    files = {}
    for prune, rotated in (("channels", False), ("subspace", True)):
        files[f"{prune}, fp32"] = export(name, widths, rotated, image, folder / f"{prune}.onnx")
        files[f"{prune}, int8"] = Path(shutil.copy(files[f"{prune}, fp32"], folder / f"{prune}-int8.onnx"))
        quantise_submodel(files[f"{prune}, int8"], torch.from_numpy(image))

    extractor = FeatureExtractor(base, GREY, GREY).eval()
    calls: dict[str, Callable[[], object]] = {WHOLE: lambda: extractor(torch.from_numpy(image))}
    for row, path in files.items():
        engine = SubModelEngine(path, channels=3, image_size=size, feature_dim=widths.dim)
        calls[row] = partial(engine.run, image)
    seconds = timed(calls, rounds)

    params = {WHOLE: sum(p.numel() for p in base.parameters())}
    params |= {row: parameters(path) for row, path in files.items() if row.endswith("fp32")}
    bytes_of = {WHOLE: 4 * params[WHOLE]}
    bytes_of |= {row: path.stat().st_size for row, path in files.items()}
    print(f"\n{name}, {size} px: d {architecture.widths.dim}→{widths.dim}, {widths.blocks[0].heads}×", end="")
    print(f"{widths.blocks[0].head_dim} attention, FFN {widths.blocks[0].hidden}")
    print(
        f"{'':24} {'parameters':>11} {'MB':>7} {'smaller':>8} {'ms, median':>11} {'p10 – p90':>16} "
        f"{'faster, p10 – p90':>22}"
    )
    for row, times in seconds.items():
        ratios = np.array(seconds[WHOLE]) / np.array(times)
        low, high = np.percentile(times, [10, 90]) * 1e3
        slow, fast = np.percentile(ratios, [10, 90])
        count = f"{params[row] / 1e6:.2f} M" if row in params else ""
        print(
            f"{row:24} {count:>11} {bytes_of[row] / 1e6:7.2f} {bytes_of[WHOLE] / bytes_of[row]:7.1f}× "
            f"{statistics.median(times) * 1e3:11.2f} {f'{low:.1f} – {high:.1f}':>16} "
            f"{f'{statistics.median(ratios):.1f}× ({slow:.1f} – {fast:.1f})':>22}"
        )


def export(name: str, widths: object, rotated: bool, image: np.ndarray, path: Path) -> Path:
    model = backbone.create(name, classes=0, widths=widths, rotated=rotated)  # type: ignore[arg-type]
    two = torch.from_numpy(np.concatenate([image, image[..., ::-1]]))
    export_submodel(FeatureExtractor(model, GREY, GREY).eval(), two, path)
    return path


def parameters(path: Path) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer)


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round; fast ones are the median of five in a round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            repeats = []
            for _ in range(1 if name == WHOLE else 5):
                start = time.perf_counter()
                call()
                repeats.append(time.perf_counter() - start)
            found[name].append(statistics.median(repeats))
    return found


if __name__ == "__main__":
    main()
