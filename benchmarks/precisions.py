"""Builds of the same sub-models in several precisions, side by side: accuracy, size, load and speed of their files.

    python benchmarks/precisions.py fp32-bundle int8-bundle int4-bundle --data imagefolder:parts

The bundles are of one work folder, the first in fp32. Accuracies are on the test split, each compared with the first's
on the same images (McNemar). The last row is four bits that are rounded to nearest, made here of the first bundle's
files. Loads and times are those of sub-model 0 on one thread; each load is a process of its own, times are CPU time,
all files in turns. The unpacked file, which lies in the system's memory while int4 is loaded, is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edvit.builder.export.onnx_file import pack_submodel
from edvit.builder.report.statistics import Difference, Share, p_text
from edvit.bundle import Bundle, read_bundle
from edvit.errors import BuildError
from edvit.inputs.datasets import read_split
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.session import open_session
from edvit.runtime.evaluation import choose

Images = npt.NDArray[np.uint8]
LOAD = """
import json, sys, time
from pathlib import Path
import onnxruntime
from edvit.runtime.engine.session import open_session
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))
before, start = memory("VmHWM"), time.process_time()
session = open_session(Path(sys.argv[1]), 1)
print(json.dumps([1e3 * (time.process_time() - start), memory("VmHWM") - before, memory("VmRSS") - before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--data", help="without it, no accuracy")
    parser.add_argument("--limit", type=int, help="test images")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bundles = [read_bundle(path) for path in args.bundle]
    with tempfile.TemporaryDirectory() as folder:
        files = {str(bundle.manifest.config["precision"]): files_of(bundle) for bundle in bundles}
        files["int4, rounded to nearest"] = nearest(files_of(bundles[0]), bundles[0], Path(folder))
        if args.data:
            compare_answers(bundles[0], files, args.data, args.limit)
        compare_files({name: paths[0] for name, paths in files.items()}, shape_of(bundles[0]), args.rounds)


def files_of(bundle: Bundle) -> list[Path]:
    return [bundle.model_path(submodel.model) for submodel in bundle.manifest.submodels]


def shape_of(bundle: Bundle) -> tuple[int, int, int]:
    how = bundle.manifest.preprocessing
    return how.channels, *how.image_size


def nearest(plain: Sequence[Path], bundle: Bundle, folder: Path) -> list[Path]:
    """Four bits without calibration; what stands for images only gets the graph to run."""
    blank = np.random.default_rng(0).integers(0, 256, (2, *shape_of(bundle)), dtype=np.uint8)
    made = [folder / path.with_suffix(".q4").name for path in plain]
    for source, target in zip(plain, made, strict=True):
        target.write_bytes(source.read_bytes())
        with suppress(BuildError):  # features may move further than a build lets through; the file is there
            pack_submodel(target, torch.from_numpy(blank), [blank], "nearest")
    return made


def compare_answers(bundle: Bundle, files: dict[str, list[Path]], data: str, limit: int | None) -> None:
    """Print fused accuracies."""
    source, how = read_split(data, "test", None), bundle.manifest.preprocessing
    chosen = choose(source, limit)
    images = np.stack([source.prepared(int(index), how) for index in chosen])
    labels = np.array([source.labels[index] for index in chosen])
    fusion = FusionEngine(bundle.model_path(bundle.manifest.fusion.model), bundle.manifest)
    correct = {name: answers(fusion, paths, images) == labels for name, paths in files.items()}
    first = next(iter(correct.values()))
    for name, of_one in correct.items():
        share, against = Share.of(of_one), Difference.of(of_one, first)
        spread = 100 * np.sqrt((against.more + against.less) / against.images**2)
        print(f"{name:26} fused {100 * share.correct / share.images:.2f} %", end="  ")
        print(f"{against.points:+.2f} ± {spread:.2f} points (+{against.more} -{against.less}, {p_text(against.p)})")


def answers(fusion: FusionEngine, paths: Sequence[Path], images: Images) -> npt.NDArray[np.int64]:
    sessions = [open_session(path, threads=1) for path in paths]
    found = []
    for start in range(0, len(images), 64):
        batch = images[start : start + 64]
        features = {i: session.run(None, {"image": batch})[0] for i, session in enumerate(sessions)}
        found.append(fusion.run(features, len(batch)).argmax(axis=1))
    return np.concatenate(found)


def compare_files(files: dict[str, Path], shape: tuple[int, int, int], rounds: int) -> None:
    """Print size, load and speed."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    sessions = {name: open_session(path, threads=1) for name, path in files.items()}
    loads: dict[str, list[list[float]]] = {name: [] for name in files}
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, path in files.items():
            done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, check=True)
            loads[name].append(json.loads(done.stdout))
            start = time.thread_time()
            for _ in range(10):
                sessions[name].run(None, {"image": image})
            seconds[name].append((time.thread_time() - start) / 10)
    first = next(iter(files))
    for name, path in files.items():
        load, peak, kept = (statistics.median(values) for values in zip(*loads[name], strict=True))
        faster = statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        print(f"{name:26} {path.stat().st_size / 1e6:.3f} MB, load {load:.0f} ms", end=", ")
        print(f"{peak:.1f} MB more at the peak and {kept:.1f} MB after it", end=", ")
        print(f"{1e3 * statistics.median(seconds[name]):.2f} ms an image, {faster:.2f}× as fast as {first}")


if __name__ == "__main__":
    main()
