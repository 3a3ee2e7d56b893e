"""Systems side by side: each built and measured for every seed, and carried out over every link.

What was measured is kept as JSON, a file a system and seed, and one a system and link, so that a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.compare.energy import Operations
from benchmarks.compare.exchange import AllGather, Chain, Exchange, FanOut, Work
from benchmarks.compare.links import LinkSpec, Means, means
from benchmarks.compare.namespaces import Network, network
from benchmarks.compare.replay import replay
from benchmarks.compare.systems import SYSTEMS, UNSPLIT, Measured, ensemble_seeds, measure
from benchmarks.compare.workshop import Settings, Workshop
from edvit.builder.jobs.progress import Reporter
from edvit.builder.train.device import devices
from edvit.errors import ConfigError
from edvit.units import si, spread

OF_MACHINES = {"device", "workers"}
"""Settings that do not change what is compared."""


@dataclass(frozen=True)
class OverLink:
    """One system over one link. Of the first seed's build: seeds differ in weights alone."""

    system: str
    link: str
    how: str
    """`measured`: between namespaces whose links are shaped, work replayed. `modelled`: by the exchange's formula."""
    latency_s: float
    """Median, from the image at the gateway to its scores."""
    latency_p10_s: float
    latency_p90_s: float
    images_per_s: float
    predicted_s: float
    """Latency by formula."""
    predicted_per_s: float


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    measured: tuple[Measured, ...]
    over_links: tuple[OverLink, ...]
    left_out: Mapping[str, str]
    """Systems that cannot be had, and why."""
    modelled: Mapping[str, str]
    """Links that could not be made here, and why."""

    def of(self, system: str) -> list[Measured]:
        """What was measured of a system, for each seed."""
        return [one for one in self.measured if one.system == system]

    def over(self, system: str, link: str) -> OverLink:
        """Raises StopIteration where there is none."""
        return next(one for one in self.over_links if (one.system, one.link) == (system, link))

    @property
    def systems(self) -> list[str]:
        """Those that were measured, in order."""
        return list(dict.fromkeys(one.system for one in self.measured))

    @property
    def links(self) -> list[str]:
        return list(dict.fromkeys(one.link for one in self.over_links))


def check_systems(names: Sequence[str]) -> tuple[str, ...]:
    """The names, in the order of the table. Raises ConfigError for one that is unknown."""
    for name in names:
        if name not in SYSTEMS:
            raise ConfigError(f"unknown system {name!r}; known: {', '.join(SYSTEMS)}")
    return tuple(name for name in SYSTEMS if name in names)


def compare(
    settings: Settings,
    out: Path,
    *,
    systems: Sequence[str],
    seeds: int,
    links: Sequence[LinkSpec],
    images: int,
    report: Reporter,
    tell: Callable[[str], None],
) -> Comparison:
    """Build, measure and carry out every system; what an earlier run with the same settings has measured is taken up.

    Args:
        out: folder of everything.
        systems: names of `SYSTEMS`.
        seeds: builds of each system that is trained: seeds 0, 1, ...
        images: of each replay over a link.

    Raises:
        ConfigError: no system fits the budget, or the device that was asked for is not here.
        EdvitError: a build failed.
    """
    wanted = check_systems(systems)
    devices(settings.device)
    workshop = Workshop(settings, out, report)
    kept = _Kept(out / "measured", settings)
    measured: list[Measured] = []
    left_out: dict[str, str] = {}
    for system in wanted:
        for seed in range(1 if system in UNSPLIT else seeds):
            tell(f"[{system}]" if system in UNSPLIT else f"[{system}, seed {seed}]")
            try:
                measured.append(kept.measured(system, seed, partial(measure, workshop)))
            except ConfigError as error:
                left_out[system] = str(error)
                tell(f"left out: {error}")
                break
    if not measured:
        raise ConfigError(f"nothing to compare: {next(iter(left_out.values()))}")
    over_links = []
    modelled: dict[str, str] = {}
    first = {one.system: one for one in reversed(measured)}
    for link in links:
        how = means(link)
        tell(f"[link {link}]" + (f" modelled: {how.reason}" if how.kind == "modelled" else ""))
        if how.kind == "modelled":
            modelled[str(link)] = how.reason
        for system in (name for name in wanted if name in first):
            over_links.append(kept.over_link(first[system], link, images, how))
    return Comparison(tuple(measured), tuple(over_links), left_out, modelled)


class _Kept:
    """What was measured before, by what it depends on.

    Args:
        folder: of JSON files.
        settings: of the comparison; other settings make other files.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        counted = {name: value for name, value in settings.model_dump().items() if name not in OF_MACHINES}
        text = json.dumps(counted, sort_keys=True, default=str)
        self._settings = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._devices = settings.devices
        folder.mkdir(parents=True, exist_ok=True)

    def measured(self, system: str, seed: int, measure: Callable[[str, int], Measured]) -> Measured:
        path = self._folder / f"{system}-{self._seeds(system, seed)}-{self._settings}.json"
        known = _read(path, measured_from_json)
        if known is not None:
            return known
        found = measure(system, seed)
        _write(path, measured_to_json(found))
        return found

    def _seeds(self, system: str, seed: int) -> str:
        """An ensemble by its members: those of an earlier version are others, but of seed 0."""
        if system != "ensemble" or seed == 0:
            return f"seed{seed}"
        members = ensemble_seeds(seed, self._devices)
        return f"seeds{members[0]}-{members[-1]}"

    def over_link(self, one: Measured, link: LinkSpec, images: int, how: Means) -> OverLink:
        key = json.dumps([exchange_to_json(one.exchange), images, how.kind], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        path = self._folder / f"{one.system}-{str(link).replace(',', '-').replace('%', 'pc')}-{digest}.json"
        known = _read(path, lambda values: OverLink(**values))
        if known is not None:
            return known
        if how.kind == "modelled":
            found = _modelled(one, link)
        else:
            with network(one.exchange.devices, link) as net:
                found = _carried_out(one, link, images, net)
        _write(path, asdict(found))
        return found


def _modelled(one: Measured, link: LinkSpec) -> OverLink:
    said = one.exchange.predicted(link)
    seconds, rate = said.latency_s, said.images_per_s
    return OverLink(one.system, str(link), "modelled", seconds, seconds, seconds, rate, seconds, rate)


def _carried_out(one: Measured, link: LinkSpec, images: int, net: Network) -> OverLink:
    said = one.exchange.predicted(link)
    done = replay(one.exchange, network=net, images=images)
    return OverLink(
        system=one.system,
        link=str(link),
        how="measured",
        latency_s=done.latency_s,
        latency_p10_s=done.latency_p10_s,
        latency_p90_s=done.latency_p90_s,
        images_per_s=done.images_per_s,
        predicted_s=said.latency_s,
        predicted_per_s=said.images_per_s,
    )


# --- JSON ----------------------------------------------------------------------------------------------------


def exchange_to_json(exchange: Exchange) -> dict[str, Any]:
    """Without the paths of ONNX files."""
    if isinstance(exchange, FanOut):
        work: Any = [work.seconds for work in exchange.work]
        rest = {"feature_bytes": exchange.feature_bytes, "fusion": exchange.fusion.seconds}
    elif isinstance(exchange, Chain):
        work, rest = [work.seconds for work in exchange.work], {"output_bytes": exchange.output_bytes}
    elif isinstance(exchange, AllGather):
        work = [[work.seconds for work in round_] for round_ in exchange.work]
        rest = {
            "part_bytes": exchange.part_bytes,
            "result_bytes": exchange.result_bytes,
            "finish": exchange.finish.seconds,
        }
    else:
        raise TypeError(f"{type(exchange).__name__} has no JSON")
    start = {"input_bytes": exchange.input_bytes, "encode": exchange.encode.seconds}
    return {"kind": type(exchange).__name__, **start, "work": work, **rest}


def exchange_from_json(values: Mapping[str, Any]) -> Exchange:
    """What `exchange_to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    size, work, encode = values["input_bytes"], values["work"], Work(values["encode"])
    if values["kind"] == "FanOut":
        works = tuple(Work(seconds) for seconds in work)
        return FanOut(size, works, tuple(values["feature_bytes"]), Work(values["fusion"]), encode)
    if values["kind"] == "Chain":
        return Chain(size, tuple(Work(seconds) for seconds in work), tuple(values["output_bytes"]), encode)
    if values["kind"] == "AllGather":
        rounds = tuple(tuple(Work(seconds) for seconds in round_) for round_ in work)
        parts, results = tuple(values["part_bytes"]), tuple(values["result_bytes"])
        return AllGather(size, rounds, parts, results, Work(values["finish"]), encode)
    raise ValueError(f"unknown exchange {values['kind']!r}")


def measured_to_json(one: Measured) -> dict[str, Any]:
    """As `measured_from_json` reads it."""
    values = {name: getattr(one, name) for name in ("system", "seed", "accuracy", "params", "bytes")}
    return {**values, "operations": asdict(one.operations), "exchange": exchange_to_json(one.exchange)}


def measured_from_json(values: Mapping[str, Any]) -> Measured:
    """What `measured_to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    rest = {name: value for name, value in values.items() if name not in ("operations", "exchange")}
    counted = dict(values["operations"])
    if counted.pop("int8", False):
        raise ValueError("counted by an earlier version, which took all of an int8 file for 8-bit arithmetic")
    operations = Operations(**counted)
    return Measured(**rest, operations=operations, exchange=exchange_from_json(values["exchange"]))


T = TypeVar("T")


def _read(path: Path, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """None where there is none, or none of this version."""
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Whole or not at all: a run may be killed here."""
    begun = path.with_suffix(".part")
    begun.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    begun.replace(path)


# --- for people ----------------------------------------------------------------------------------------------


def to_csv(comparison: Comparison) -> str:
    """One line a system, seed and link; timings over links are the first seed's."""
    buffer = io.StringIO()
    rows = [
        {
            "system": one.system,
            "seed": one.seed,
            "accuracy": one.accuracy,
            "params": one.params,
            "bytes": one.bytes,
            "worst_device_s": one.worst_s,
            "wire_bytes": one.exchange.wire_bytes,
            "joules": one.operations.joules,
            **{name: value for name, value in asdict(over).items() if name != "system"},
        }
        for one in comparison.measured
        for over in (comparison.over(one.system, link) for link in comparison.links)
    ]
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else ["system"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """What each system is, then how it fares over each link."""
    lines = [
        "| system | accuracy | parameters a device | file a device | slowest device | on the wire | arithmetic |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in comparison.systems:
        ones = comparison.of(system)
        columns = (
            system,
            spread([100 * one.accuracy for one in ones], "%"),
            f"{max(one.params for one in ones) / 1e6:.2f} M",
            f"{max(one.bytes for one in ones) / 1e6:.2f} MB",
            si(statistics.median(one.worst_s for one in ones), "s"),
            si(statistics.mean(one.exchange.wire_bytes for one in ones), "B"),
            si(statistics.mean(one.operations.joules for one in ones), "J"),
        )
        lines.append(f"| {' | '.join(columns)} |")
    lines += ["", *_links_table(comparison)]
    lines += [f"Modelled: {link} ({why})." for link, why in comparison.modelled.items()]
    lines += [f"Left out: {system} ({why})." for system, why in comparison.left_out.items()]
    return "\n".join([*lines, ""])


def _links_table(comparison: Comparison) -> list[str]:
    how = {link: comparison.over(comparison.systems[0], link).how for link in comparison.links}
    heads = [f"{link}, {how[link]}: ms" for link in comparison.links]
    columns = [name for head in heads for name in (head, "images/s")]
    lines = [f"| system | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for system in comparison.systems:
        cells = []
        for link in comparison.links:
            over = comparison.over(system, link)
            near = abs(over.latency_s - over.predicted_s) < 0.05 * over.predicted_s or over.how == "modelled"
            cells.append(f"{1e3 * over.latency_s:.1f}" + ("" if near else f" (formula {1e3 * over.predicted_s:.1f})"))
            cells.append(f"{over.images_per_s:.0f}")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return [*lines, ""] if comparison.links else []
