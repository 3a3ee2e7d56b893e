"""What a plan says: which device holds which sub-model, and what that will cost. Values only; `greedy` decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from edvit.bundle import PlacedSubModel, PlanInfo
from edvit.fleet import Device, Fleet
from edvit.plan.cost import Cost, communication_s, energy_j, fusion_s, latency_s, uplink_s
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import AttentionMode


@dataclass(frozen=True)
class Demand:
    """What a sub-model asks of the device that holds it."""

    submodel: int
    memory_bytes: int
    """Weights and activations for one image."""
    flops: int
    """Operations per image; seconds and joules follow from the device."""


Placement = Mapping[int, str]
"""Sub-model id -> device name."""


@dataclass(frozen=True)
class PlannedSubModel:
    """One sub-model of a plan."""

    id: int
    classes: tuple[int, ...]
    """Its class group, as class indices."""
    heads_pruned: Fraction | int
    architecture: AnyArchitecture
    """At its pruned widths, without a classifier head."""
    cost: Cost
    device: str


@dataclass(frozen=True)
class DeviceLoad:
    """What one device holds and does per image, all predicted."""

    device: Device
    submodels: tuple[int, ...]
    """Ids; empty for a spare device."""
    memory_bytes: int
    compute_s: float
    """Its sub-models one after the other."""
    communication_s: float
    energy_j: float

    @property
    def latency_s(self) -> float:
        """From the first byte sent by the gateway to this device's last feature."""
        return self.compute_s + self.communication_s


@dataclass(frozen=True)
class Plan:
    """Sub-models, their widths, their devices, and what follows from them."""

    base: AnyArchitecture
    mode: AttentionMode
    fleet: Fleet
    submodels: tuple[PlannedSubModel, ...]
    fusion_hidden: int
    """Width of the fusion MLP's hidden layer."""

    @property
    def fusion_widths(self) -> tuple[int, int, int]:
        """The fusion MLP from the concatenated features to the scores over all classes."""
        features = sum(submodel.architecture.feature_dim for submodel in self.submodels)
        return (features, self.fusion_hidden, sum(len(submodel.classes) for submodel in self.submodels))

    @property
    def fusion_s(self) -> float:
        """Predicted seconds of the fusion on the gateway."""
        return fusion_s(self.fusion_widths)

    @property
    def devices_used(self) -> int:
        return len({submodel.device for submodel in self.submodels})

    @property
    def input_bytes(self) -> int:
        """Size of one input on the wire, bytes."""
        return self.submodels[0].cost.input_bytes

    def with_input(self, input_bytes: int) -> Plan:
        """The same where an input takes so many bytes on the wire, as it is encoded."""
        submodels = (
            replace(submodel, cost=replace(submodel.cost, input_bytes=input_bytes)) for submodel in self.submodels
        )
        return replace(self, submodels=tuple(submodels))

    @property
    def uplink_s(self) -> float:
        """Predicted seconds in which all inputs leave the gateway."""
        return uplink_s(self.fleet, self.devices_used, self.input_bytes)

    @property
    def loads(self) -> tuple[DeviceLoad, ...]:
        """Every device of the fleet in its order, spare ones too."""
        return tuple(self._load(device) for device in self.fleet.devices)

    def _load(self, device: Device) -> DeviceLoad:
        held = [submodel for submodel in self.submodels if submodel.device == device.name]
        if not held:
            return DeviceLoad(device, (), 0, 0.0, 0.0, 0.0)
        return DeviceLoad(
            device=device,
            submodels=tuple(submodel.id for submodel in held),
            memory_bytes=sum(submodel.cost.peak_memory_bytes for submodel in held),
            compute_s=sum(latency_s(submodel.cost, device) for submodel in held),
            communication_s=communication_s(
                self.fleet,
                device,
                devices=self.devices_used,
                input_bytes=self.input_bytes,
                feature_bytes=sum(submodel.cost.feature_bytes for submodel in held),
            ),
            energy_j=sum(energy_j(submodel.cost, device) for submodel in held),
        )

    @property
    def worst(self) -> DeviceLoad:
        """The device whose features come last."""
        return max(self.loads, key=lambda load: load.latency_s)

    @property
    def latency_s(self) -> float:
        """Predicted seconds per image: the last device's features, then the fusion."""
        return self.worst.latency_s + self.fusion_s

    def info(self) -> PlanInfo:
        """As the bundle records it."""
        placed = []
        for submodel in self.submodels:
            device = self.fleet.device(submodel.device)
            placed.append(
                PlacedSubModel(
                    submodel=submodel.id,
                    device=submodel.device,
                    latency_s=latency_s(submodel.cost, device),
                    memory_bytes=submodel.cost.peak_memory_bytes,
                    energy_j=energy_j(submodel.cost, device),
                )
            )
        return PlanInfo(fleet=self.fleet, placed=tuple(placed), latency_s=self.latency_s)
