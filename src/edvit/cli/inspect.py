"""`edvit inspect`: what a bundle holds, verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edvit.cli import Json, plain_console
from edvit.shape.vit import Widths

if TYPE_CHECKING:
    from rich.table import Table

    from edvit.bundle import Bundle, Manifest
    from edvit.shape.conv import FilterWidths


def inspect(
    bundle: Annotated[Path, Parameter(help="Folder that `edvit build` wrote.")],
    /,
    *,
    as_json: Annotated[Json, Parameter(help="Print the manifest and the digest as JSON.")] = False,
) -> None:
    """Verify a bundle and show what is inside: sub-models, fusion, plan, metrics."""
    from edvit.bundle import read_bundle

    verified = read_bundle(bundle)
    if as_json:
        print(to_json(verified))
        return
    console = plain_console()
    manifest = verified.manifest
    console.print(f"{bundle}: complete, every file verified", soft_wrap=True)
    console.print(f"sha256 {verified.digest}", soft_wrap=True)
    for table in (_summary(manifest), _submodels(manifest), _plan(manifest), _metrics(manifest)):
        if table.row_count:
            console.print(table)


def to_json(bundle: Bundle) -> str:
    """Digest and manifest."""
    import json

    values: dict[str, Any] = {"digest": bundle.digest, "manifest": bundle.manifest.model_dump(mode="json")}
    return json.dumps(values, indent=1)


def _summary(manifest: Manifest) -> Table:
    base, data, fusion = manifest.base, manifest.data, manifest.fusion
    table = _table("", "", header=False)
    table.add_row("base model", f"{base.name}, {_count(base.params)} parameters, {megabytes(base.bytes)}")
    how = manifest.preprocessing
    sound = f", from {how.spectrogram}" if how.spectrogram else ""
    table.add_row("input", f"uint8 {list(how.shape)}, {how.interpolation}{sound}")
    table.add_row("data", f"{data.spec}: {data.train:,} train, {data.validation:,} validation, {data.test:,} test")
    table.add_row("classes", f"{len(data.classes)}: {', '.join(data.classes)}")
    table.add_row("fusion", f"{_count(fusion.params)} parameters, {megabytes(fusion.model.bytes)}")
    table.add_row("latency", f"{manifest.plan.latency_s * 1000:.1f} ms predicted, network and fusion included")
    return table


def _submodels(manifest: Manifest) -> Table:
    names = manifest.data.classes
    table = _table("sub-model", "classes", _stages(manifest), "params", "size", "MFLOPs")
    for submodel in manifest.submodels:
        table.add_row(
            str(submodel.id),
            ", ".join(names[index] for index in submodel.classes),
            _widths(submodel.widths),
            _count(submodel.params),
            megabytes(submodel.model.bytes),
            f"{submodel.flops / 1e6:,.1f}",
        )
    return table


def _stages(manifest: Manifest) -> str:
    return "dim, heads, FFN" if isinstance(manifest.base.widths, Widths) else "filters"


def _widths(widths: Widths | FilterWidths) -> str:
    if isinstance(widths, Widths):
        block = widths.blocks[0]
        return f"{widths.dim}, {block.heads}x{block.head_dim}, {block.hidden}"
    return f"{min(widths.filters)} to {max(widths.filters)}"


def _plan(manifest: Manifest) -> Table:
    """One row per device, with what the plan predicted for it."""
    plan = manifest.plan
    table = _table("device", "holds", "memory", "latency", "energy")
    for device in plan.fleet.devices:
        placed = [line for line in plan.placed if line.device == device.name]
        energy = sum(line.energy_j for line in placed)
        table.add_row(
            device.name,
            ", ".join(f"sub-model {line.submodel}" for line in placed) or "nothing",
            f"{sum(line.memory_bytes for line in placed) / 1e6:.1f} of {device.memory_mb:g} MB",
            f"{sum(line.latency_s for line in placed) * 1000:.1f} ms",
            f"{energy:.2g} of {device.energy_j:g} J" if device.energy_j is not None else f"{energy:.2g} J",
        )
    return table


def _metrics(manifest: Manifest) -> Table:
    table = _table("metric", "split", "value")
    for metric in manifest.metrics:
        value = f"{metric.value:.2%}" if metric.unit == "fraction" else f"{metric.value:g} {metric.unit}".rstrip()
        table.add_row(metric.name, metric.split, value)
    return table


def _table(*columns: str, header: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE, show_header=header)
    for column in table.columns:
        column.overflow = "fold"
    if not header:
        table.columns[0].no_wrap = True
    return table


def megabytes(size: int) -> str:
    """10^6 bytes, as everywhere in the project."""
    return f"{size / 1e6:,.2f} MB"


def _count(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"
