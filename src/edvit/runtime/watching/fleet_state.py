"""The fleet and the bundle as metrics: read from the gateway at each scrape, and kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edvit.runtime.gateway.breaker import BreakerState
from edvit.runtime.gateway.device_state import DeviceStatus, State
from edvit.runtime.watching.label import label

if TYPE_CHECKING:
    from edvit.bundle import Bundle
    from edvit.runtime.gateway.gateway import Gateway


class FleetState:
    """A collector of prometheus_client: what the gateway that `current` returns knows now."""

    def __init__(self, current: Callable[[], Gateway]) -> None:
        self._current = current

    def describe(self) -> list[Metric]:
        """Nothing: what is collected is not known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of a scrape."""
        gateway = self._current()
        devices = gateway.devices()
        fleet = [device for device in devices if device.in_fleet]
        yield _one_of("edvit_device_state", "What a device does: 1 for its state.", "state", get_args(State), fleet)
        yield _one_of(
            "edvit_device_breaker",
            "Whether requests go to a device: 1 for the state of its breaker.",
            "breaker",
            get_args(BreakerState),
            fleet,
        )
        yield from _memory(fleet)
        yield _holders(gateway.bundle, fleet)
        strangers = GaugeMetricFamily("edvit_strangers", "Devices that are there without being in the fleet.")
        strangers.add_metric([], len(devices) - len(fleet))
        yield strangers
        copies = CounterMetricFamily(
            "edvit_copies_asked", "Times that second copies were asked, since the bundle is served.", labels=["reason"]
        )
        asked = gateway.copies_asked
        copies.add_metric(["late"], asked.late)
        copies.add_metric(["ended"], asked.ended)
        yield copies
        yield from _bundle(gateway.bundle)


def _one_of(name: str, text: str, field: str, values: tuple[str, ...], devices: list[DeviceStatus]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["device", field])
    for device in devices:
        for value in values:
            family.add_metric([label(device.name), value], float(getattr(device, field) == value))
    return family


def _memory(devices: list[DeviceStatus]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "edvit_device_memory_bytes", "Memory of what a device holds, as the plan counts it.", labels=["device"]
    )
    limit = GaugeMetricFamily("edvit_device_memory_limit_bytes", "Limit of a device's memory.", labels=["device"])
    for device in devices:
        used.add_metric([label(device.name)], device.memory_bytes)
        if device.memory_limit_bytes is not None:
            limit.add_metric([label(device.name)], device.memory_limit_bytes)
    yield used
    yield limit


def _holders(bundle: Bundle, devices: list[DeviceStatus]) -> Metric:
    family = GaugeMetricFamily(
        "edvit_submodel_holders", "Devices that hold a sub-model and are there.", labels=["submodel"]
    )
    for submodel in bundle.manifest.submodels:
        holders = sum(device.alive and submodel.id in device.submodels for device in devices)
        family.add_metric([str(submodel.id)], holders)
    return family


def _bundle(bundle: Bundle) -> Iterator[Metric]:
    manifest = bundle.manifest
    info = GaugeMetricFamily("edvit_bundle_info", "The bundle that is served.", labels=["digest", "fleet"])
    info.add_metric([bundle.digest, label(manifest.plan.fleet.name)], 1)
    yield info
    models = GaugeMetricFamily("edvit_model_info", "The bundle's ONNX files.", labels=["model", "sha256"])
    for submodel in manifest.submodels:
        models.add_metric([f"sub-model {submodel.id}", submodel.model.sha256], 1)
    models.add_metric(["fusion", manifest.fusion.model.sha256], 1)
    yield models
