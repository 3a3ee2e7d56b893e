"""The paper's table: accuracy, latency and size against the number of devices, over seeds (arXiv 2410.11650).

A cell is one `edvit build`, run as a process of its own, and what its bundle is worth. Its row is kept as a JSON file
beside the bundle, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import nn

from edvit.builder.export.onnx_file import export_module
from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.models.family import family_of
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import MANIFEST, Bundle, read_bundle
from edvit.errors import BuildError, ConfigError
from edvit.runtime.engine.session import open_session
from edvit.runtime.predictor import LocalPredictor
from edvit.units import spread

ROUNDS = 15
"""Rounds of timing; each times the base and the sub-models, so that a busy machine slows both."""


@dataclass(frozen=True)
class Cell:
    """One build of the table."""

    devices: int
    seed: int
    out: Path
    command: tuple[str, ...]
    """Words after `edvit`; they reproduce this cell alone."""

    @property
    def row_path(self) -> Path:
        return self.out.with_name(self.out.name + ".json")


@dataclass(frozen=True)
class Row:
    """What a cell came to. Accuracies are on the test split, 0 to 1."""

    devices: int
    seed: int
    base: float
    fused: float
    one_lost: float | None
    """The worst of the accuracies without one of the devices; None where there is only one."""
    params: int
    """Parameters of the largest sub-model."""
    bytes: int
    smaller: float
    """The base's parameters over those of the largest sub-model."""
    base_ms: float
    """Milliseconds an image, the unsplit model in PyTorch fp32 on one thread, median."""
    base_onnx_ms: float | None
    """Likewise in ONNX Runtime; None where it cannot be exported."""
    ms: float
    """The slowest sub-model and the fusion in ONNX Runtime fp32, one thread each, as on devices; without a network."""
    faster: float
    command: str


def cells(out: Path, devices: Sequence[int], seeds: int, options: Sequence[str]) -> list[Cell]:
    """The builds of the table, smallest number of devices first. All share one work folder, and so the base model.

    Raises:
        ConfigError: an option that the table sets itself.
    """
    taken = {"-o", "--out", "--devices", "--fleet", "--groups", "--seed", "--work", "--baseline", "--no-baseline"}
    for option in options:
        if option.partition("=")[0] in taken:
            raise ConfigError(f"{option.partition('=')[0]}: the table sets this option itself; leave it out")
    made = []
    for count in sorted(set(devices)):
        for seed in range(seeds):
            bundle = out / f"n{count}-seed{seed}"
            words = ("build", *options, "--devices", str(count), "--seed", str(seed), "--no-baseline")
            command = (*words, "--work", str(out / "work"), "-o", str(bundle))
            made.append(Cell(count, seed, bundle, command))
    return made


def run(cell: Cell) -> Row:
    """Build a cell and measure it, or read what an earlier run with the same command left.

    Raises:
        BuildError: the build failed; it has said why.
    """
    known = _read_row(cell)
    if known is not None:
        return known
    done = subprocess.run([sys.executable, "-m", "edvit", *cell.command], check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise BuildError(f"this cell failed, see above: {shown(cell)}")
    row = measure(cell, read_bundle(cell.out))
    cell.row_path.write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")
    return row


def _read_row(cell: Cell) -> Row | None:
    """None where there is none, or it is of another command, or not of this version."""
    try:
        values = json.loads(cell.row_path.read_text(encoding="utf-8"))
        row = Row(**values)
    except (OSError, ValueError, TypeError):
        return None
    return row if row.command == shown(cell) and (cell.out / MANIFEST).is_file() else None


def shown(cell: Cell) -> str:
    """The command as one would type it."""
    return shlex.join(("edvit", *cell.command))


def measure(cell: Cell, bundle: Bundle) -> Row:
    """Accuracies from the manifest; times here and now."""
    manifest = bundle.manifest
    base, fused = (manifest.metric(name) for name in ("base", "fused"))
    if base is None or fused is None:
        raise BuildError(f"{bundle.path}: holds no accuracy; build it again")
    lost = [m.value for m in manifest.metrics if m.split == "test" and m.name.startswith("fused-without-")]
    largest = max(manifest.submodels, key=lambda submodel: submodel.params)
    latencies = latencies_s(bundle)
    return Row(
        devices=cell.devices,
        seed=cell.seed,
        base=base,
        fused=fused,
        one_lost=min(lost) if len(manifest.submodels) > 1 and lost else None,
        params=largest.params,
        bytes=max(submodel.model.bytes for submodel in manifest.submodels),
        smaller=manifest.base.params / largest.params,
        base_ms=latencies.base * 1e3,
        base_onnx_ms=None if latencies.base_onnx is None else latencies.base_onnx * 1e3,
        ms=latencies.split * 1e3,
        faster=latencies.faster,
        command=shown(cell),
    )


@dataclass(frozen=True)
class Latencies:
    """Median seconds of an image on one thread.

    Attributes:
        base: the unsplit model in PyTorch.
        base_onnx: the same in ONNX Runtime; None where it cannot be exported.
        split: the slowest sub-model and the fusion, in ONNX Runtime.
    """

    base: float
    base_onnx: float | None
    split: float

    @property
    def faster(self) -> float:
        """How many times as fast the split model is as the unsplit one in what runs that faster."""
        return min(self.base, self.base_onnx or self.base) / self.split


def latencies_s(bundle: Bundle, rounds: int = ROUNDS) -> Latencies:
    """Time the unsplit model and the split one in turns.

    The bundle does not hold the base: a model of its architecture with random weights is as slow.
    """
    manifest = bundle.manifest
    how, classes = manifest.preprocessing, len(manifest.data.classes)
    family, name = family_of(manifest.base.name), manifest.base.name
    model = family.create(family.plan(name, image_size=how.image_size, channels=how.channels, classes=classes))
    whole = nn.Sequential(FeatureExtractor(model, how.mean, how.std), model.head).eval()
    predictor = LocalPredictor(bundle)
    images = np.random.default_rng(0).integers(0, 256, (2, *how.shape), dtype=np.uint8)
    image = images[:1]
    with tempfile.TemporaryDirectory() as folder:
        session = _in_onnx(whole, torch.from_numpy(images), Path(folder) / "base.onnx")
    with torch_threads(1), torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {"base": lambda: whole(torch.from_numpy(image))}
        if session is not None:
            calls["base_onnx"] = lambda: session.run(None, {"image": image})
        seconds: dict[str, list[float]] = {name: [] for name in (*calls, "split")}
        for round_ in range(rounds + 1):
            for called, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[called].append(time.perf_counter() - start)
            timings = predictor.run(image).timings
            seconds["split"].append(timings.slowest_run_s + timings.fuse_s)
            if not round_:  # it warms up
                for taken in seconds.values():
                    taken.clear()
    medians = {called: statistics.median(taken) for called, taken in seconds.items()}
    return Latencies(medians["base"], medians.get("base_onnx"), medians["split"])


def _in_onnx(whole: nn.Module, images: torch.Tensor, path: Path) -> InferenceSession | None:
    """The model in ONNX Runtime as devices have it; None where it cannot be exported."""
    try:
        export_module(whole, (images,), ["image"], "logits", path)
    except BuildError:
        return None
    return open_session(path, threads=1)


def run_all(planned: Sequence[Cell], tell: Callable[[str], None]) -> Iterator[list[Row]]:
    """One build after the other; after each, the rows there are."""
    rows: list[Row] = []
    for number, cell in enumerate(planned, start=1):
        tell(f"[{number}/{len(planned)}] {shown(cell)}")
        rows.append(run(cell))
        yield list(rows)


# --- for people --------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[Row]) -> str:
    """One line a cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return buffer.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """One line a number of devices, mean and range over seeds; then the command of every cell."""
    lines = [
        "| devices | base | fused | below the base | one device lost | parameters | smaller | ms | faster |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count, group in by_devices(rows):
        lost = [row.one_lost for row in group if row.one_lost is not None]
        columns = (
            str(count),
            spread([100 * row.base for row in group], "%"),
            spread([100 * row.fused for row in group], "%"),
            spread([100 * (row.base - row.fused) for row in group]),
            spread([100 * value for value in lost], "%") if lost else "",
            spread([row.params / 1e6 for row in group], " M", 2),
            spread([row.smaller for row in group], "×"),
            spread([row.ms for row in group], "", 2),
            spread([row.faster for row in group], "×"),
        )
        lines.append(f"| {' | '.join(columns)} |")
    seeds = sorted({row.seed for row in rows})
    note = (
        f"Mean and range over {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}. Milliseconds "
        "an image on one thread of this machine: the slowest sub-model and the fusion in ONNX Runtime fp32, without a "
        "network; faster than the unsplit model in PyTorch or ONNX Runtime fp32, whichever runs it faster."
    )
    return "\n".join([*lines, "", note, "", *(f"    {row.command}" for row in rows), ""])


def by_devices(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Rows of each number of devices, in order."""
    return [(count, [row for row in rows if row.devices == count]) for count in sorted({row.devices for row in rows})]
