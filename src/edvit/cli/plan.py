"""`edvit plan`: what each device would hold, how fast, how large, how many joules; before any training."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edvit.builder.options import COMMON, FLEET, PlanOptions
from edvit.cli import Json, PositiveInt, plain_console
from edvit.cli.fleet import FleetOptions
from edvit.errors import ConfigError, MissingExtraError
from edvit.plan.keep import format_keep
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.shape.conv import convnet, is_convnet
from edvit.units import counted, si

if TYPE_CHECKING:
    from rich.table import Table

    from edvit.fleet import Device, Fleet
    from edvit.inputs.datasets import LabelledImages
    from edvit.inputs.preprocess import Preprocessing
    from edvit.plan.plan import DeviceLoad, Plan
    from edvit.shape.any import AnyArchitecture
    from edvit.shape.image import ImageSize

SAMPLES = 32
"""Images whose bytes are measured."""
ROOM = 30
"""Characters of class names that a row of the table shows: with --json every class is named."""


def plan(
    *,
    fleet: FleetOptions = FleetOptions(),
    options: Annotated[PlanOptions, Parameter(name="*")] = PlanOptions(),
    classes: Annotated[
        PositiveInt | None, COMMON, Parameter(help="Number of classes of --model, in place of --data.")
    ] = None,
    image_encoding: Annotated[
        ImageEncoding,
        FLEET,
        Parameter(help="How edvit serve will send images; the bytes are measured on some images of --data."),
    ] = "raw",
    as_json: Annotated[Json, COMMON, Parameter(help="Print the plan as JSON.")] = False,
) -> None:
    """Show what each device would hold, how fast, how large, how many joules, before any training."""
    from edvit.plan.keep import heads_pruned_for

    if (options.data is None) == (classes is None):
        raise ConfigError("give either --data or --classes: the plan needs to know what is split")
    if image_encoding != "raw" and options.data is None:
        raise ConfigError("--image-encoding needs --data: what images take depends on them")
    devices = fleet.read()
    if classes is None:
        names, kind, result = _as_built(options, devices, image_encoding)
    else:
        names, kind, result = tuple(map(str, range(classes))), "image", _of_model(options, devices, classes)
    asked = heads_pruned_for(options.keep, result.base.keep_steps, options.attention)
    if as_json:
        print(to_json(result, names))
        return
    console = plain_console()
    for line in headline(result, kind):
        console.print(line)
    console.print()
    console.print(device_table(result, names))
    console.print()
    for line in remarks(result, asked):
        console.print(line)


def _of_model(options: PlanOptions, fleet: Fleet, classes: int) -> Plan:
    """The plan of `--model` for so many classes, without any data."""
    from edvit.plan.make import make_plan

    if options.model is None:
        raise ConfigError("--classes needs --model: the plan needs to know what is split")
    return make_plan(
        _architecture(options.model, options.image_size, options.channels, classes, rotated=options.rotated),
        fleet,
        groups=options.groups,
        keep=options.keep,
        attention=options.attention,
        rotated=options.rotated,
        seed=options.seed,
        precision=options.precision,
    )


def _as_built(options: PlanOptions, fleet: Fleet, encoding: ImageEncoding) -> tuple[tuple[str, ...], str, Plan]:
    """The names of the classes, what they are of (`image`, `sound`), and the plan that a build with these options
    makes."""
    try:
        from edvit.builder.config import make_config
        from edvit.builder.pipeline import make_plan
        from edvit.builder.stages.source import open_source
        from edvit.runtime.source import what
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    config = make_config(**options.given(), fleet=fleet)
    source = open_source(config)
    result = make_plan(config, source)
    if encoding != "raw":
        result = result.with_input(sent_bytes(source.train, source.preprocessing, encoding))
    return source.train.classes, what(source.preprocessing), result


def sent_bytes(images: LabelledImages, how: Preprocessing, encoding: ImageEncoding) -> int:
    """Bytes of an image, or of a sound's spectrogram, on its way to a device: the mean of some, evenly spaced."""
    from edvit.runtime.evaluation import choose
    from edvit.runtime.wire.image_encoding import encode_images

    chosen = choose(images, SAMPLES).tolist()
    sizes = [len(encode_images(images.prepared(index, how)[None], encoding)) for index in chosen]
    return round(sum(sizes) / len(sizes))


def _architecture(
    model: str, img_size: ImageSize | None, channels: int | None, classes: int, *, rotated: bool
) -> AnyArchitecture:
    if is_convnet(model):
        network = convnet(model, image_size=img_size, channels=channels or 3, classes=classes)
        return network.rotated_form() if rotated else network
    try:
        from edvit.builder.subspace.rms import check_rotatable
        from edvit.builder.vit.backbone import describe, template
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    built = template(model, image_size=img_size, channels=channels or 3, classes=classes)
    if rotated:
        check_rotatable(built)
    if channels is None:
        own = 1 if built.pretrained_cfg["input_size"][0] == 1 else 3
        return describe(built).model_copy(update={"channels": own})
    return describe(built)


def _missing(error: ModuleNotFoundError) -> MissingExtraError:
    return MissingExtraError(
        f'planning reads the model from timm, and {error.name} is not installed: pip install "edvit[build]"'
    )


def headline(plan: Plan, kind: str = "image") -> list[str]:
    """What splitting buys: the plan's latency next to the whole model's on one device, the fastest that holds it.

    Where none holds it, on the fastest of all.
    """
    from edvit.plan.cost import communication_s, latency_s, model_cost

    whole = model_cost(plan.base)

    def holds(device: Device) -> bool:
        return whole.peak_memory_bytes <= device.memory_bytes

    best = max(plan.fleet.devices, key=lambda device: (holds(device), device.gflops, device.memory_bytes))
    alone = latency_s(whole, best) + communication_s(
        plan.fleet, best, devices=1, input_bytes=plan.input_bytes, feature_bytes=plan.base.classes * 4
    )
    fits = "of" if holds(best) else "does not fit"
    size = f"{si(whole.peak_memory_bytes, 'B')}, {fits} {si(best.memory_bytes, 'B')}"
    largest = max(submodel.cost.params for submodel in plan.submodels)
    return [
        f"{counted(plan.base.classes, 'class', 'es')} → {counted(len(plan.submodels), 'sub-model')} on "
        f"{counted(plan.devices_used, 'device')}; predicted {si(plan.latency_s, 's')} per {kind}",
        f"Whole model on {best.name}: {si(alone, 's')}, {size}. "
        f"Parameters: {si(whole.params)} → {si(largest)} at most per sub-model ({whole.params / largest:.1f}x fewer)",
    ]


def device_table(plan: Plan, names: tuple[str, ...]) -> Table:
    """One row per sub-model, `#` its id; memory, compute, wire, energy are the device's, in its first row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("device", overflow="fold")
    table.add_column("#", justify="right", overflow="fold")
    table.add_column("classes", overflow="fold")
    for column in ("keep", "size", "memory", "compute", "wire", "energy"):
        table.add_column(column, justify="right", overflow="fold")
    for load in plan.loads:
        for row in _device_rows(plan, load, names):
            table.add_row(*row)
    return table


def _device_rows(plan: Plan, load: DeviceLoad, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not load.submodels:
        return [(load.device.name, "–", "spare", "", "", "", "", "", "")]
    heads = plan.base.keep_steps
    used = (
        f"{load.memory_bytes / 1e6:.1f}/{load.device.memory_mb:g} MB",
        si(load.compute_s, "s"),
        si(load.communication_s, "s"),
        _energy(load),
    )
    rows: list[tuple[str, ...]] = []
    for position, index in enumerate(load.submodels):
        submodel = plan.submodels[index]
        rows.append(
            (
                load.device.name if position == 0 else "",
                str(index),
                shortened([names[c] for c in submodel.classes]),
                format_keep(heads, submodel.heads_pruned),
                si(submodel.cost.weight_bytes, "B"),
                *(used if position == 0 else ("", "", "", "")),
            )
        )
    return rows


def shortened(names: Sequence[str], room: int = ROOM) -> str:
    """As many names as `room` characters take, one at least, and how many more there are."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= room:
        shown += 1
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more


def _energy(load: DeviceLoad) -> str:
    limit = load.device.energy_j
    return si(load.energy_j, "J") if limit is None else f"{load.energy_j:.2g}/{limit:g} J"


def remarks(plan: Plan, asked: Fraction | int) -> list[str]:
    """What a reader should know before building: where it was pruned more, and what the wire takes."""
    lines = []
    heads = plan.base.keep_steps
    more = [str(submodel.id) for submodel in plan.submodels if submodel.heads_pruned > asked]
    if more:
        which = f"sub-model {', '.join(more)}"
        lines.append(f"Pruned beyond the keep ratio of {format_keep(heads, asked)}, to fit the limits: {which}.")
    lines.append(
        f"The gateway's uplink ({plan.fleet.gateway.uplink_mbps:g} Mbit/s, shared) takes {si(plan.uplink_s, 's')} "
        f"for {counted(plan.devices_used, 'input')} of {si(plan.input_bytes, 'B')}; "
        f"the fusion takes {si(plan.fusion_s, 's')}."
    )
    return lines


def to_json(plan: Plan, names: tuple[str, ...]) -> str:
    """The plan as the bundle would record it, with the sub-models and the base model."""
    import json
    from dataclasses import asdict

    from edvit.plan.cost import model_cost

    values: dict[str, Any] = {
        "base": {"architecture": plan.base.model_dump(mode="json"), "cost": asdict(model_cost(plan.base))},
        "attention": plan.mode,
        "submodels": [
            {
                "id": submodel.id,
                "classes": [names[index] for index in submodel.classes],
                "keep": format_keep(plan.base.keep_steps, submodel.heads_pruned),
                "widths": submodel.architecture.widths.model_dump(mode="json"),
                "cost": asdict(submodel.cost),
                "device": submodel.device,
            }
            for submodel in plan.submodels
        ],
        "plan": plan.info().model_dump(mode="json"),
        "input_bytes": plan.input_bytes,
        "uplink_s": plan.uplink_s,
        "fusion_s": plan.fusion_s,
    }
    return json.dumps(values, indent=1)
