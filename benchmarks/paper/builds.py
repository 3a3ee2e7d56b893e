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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from edvit.builder.jobs.parallel import torch_threads
from edvit.builder.models.family import family_of
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.bundle import MANIFEST, Bundle, read_bundle
from edvit.errors import BuildError, ConfigError
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
    base_s, split_s = latencies_s(bundle)
    return Row(
        devices=cell.devices,
        seed=cell.seed,
        base=base,
        fused=fused,
        one_lost=min(lost) if len(manifest.submodels) > 1 and lost else None,
        params=largest.params,
        bytes=max(submodel.model.bytes for submodel in manifest.submodels),
        smaller=manifest.base.params / largest.params,
        base_ms=base_s * 1e3,
        ms=split_s * 1e3,
        faster=base_s / split_s,
        command=shown(cell),
    )


def latencies_s(bundle: Bundle, rounds: int = ROUNDS) -> tuple[float, float]:
    """Seconds an image of the unsplit model and of the split one, medians over rounds that time both.

    The bundle does not hold the base: a model of its architecture with random weights is as slow.
    """
    import torch

    manifest = bundle.manifest
    how, classes = manifest.preprocessing, len(manifest.data.classes)
    family, name = family_of(manifest.base.name), manifest.base.name
    model = family.create(family.plan(name, image_size=how.image_size, channels=how.channels, classes=classes))
    extractor = FeatureExtractor(model, how.mean, how.std).eval()
    predictor = LocalPredictor(bundle)
    image = np.random.default_rng(0).integers(0, 256, (1, *how.shape), dtype=np.uint8)
    base, split = [], []
    with torch_threads(1), torch.inference_mode():
        for round_ in range(rounds + 1):
            start = time.perf_counter()
            model.head(extractor(torch.from_numpy(image)))
            whole = time.perf_counter() - start
            timings = predictor.predict(image).timings
            if round_:  # the first one warms up
                base.append(whole)
                split.append(timings.slowest_run_s + timings.fuse_s)
    return statistics.median(base), statistics.median(split)


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
        "network; faster than the unsplit model in PyTorch fp32."
    )
    return "\n".join([*lines, "", note, "", *(f"    {row.command}" for row in rows), ""])


def by_devices(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Rows of each number of devices, in order."""
    return [(count, [row for row in rows if row.devices == count]) for count in sorted({row.devices for row in rows})]
