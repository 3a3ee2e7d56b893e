"""Which device holds and answers for each sub-model while others are gone: the plan, what has moved, and copies."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from edvit.bundle import Bundle
from edvit.plan.greedy import mend, second_copies
from edvit.plan.plan import Demand, Placement
from edvit.runtime.gateway.device_state import DeviceState
from edvit.runtime.gateway.gather import Expected

log = logging.getLogger(__name__)

MEND_AFTER_S = 10.0
"""The grace time: a device that is gone for longer has its sub-models placed on others."""
MEND_FIRST_S = 60.0
"""The same for one that has not been there since the gateway started, and may be about to be started."""
HOME_AFTER_S = 10.0
"""A device that is back keeps its substitutes for so long, in case it goes again."""


class Mending:
    """Where sub-models are beside the plan. Whoever calls it holds the lock of the devices.

    Args:
        bundle: what is served.
        devices: every device of the fleet by name, in its order; they are told what to hold.
        after_s: the grace time, seconds.
        replicas: 2 to keep a second copy of every sub-model where there is room.
    """

    def __init__(self, bundle: Bundle, devices: Mapping[str, DeviceState], *, after_s: float, replicas: int) -> None:
        manifest = bundle.manifest
        self._digest = bundle.digest
        self._fleet = manifest.plan.fleet
        self._devices = devices
        self._after_s = after_s
        self._replicas = replicas
        self._planned: dict[int, str] = {line.submodel: line.device for line in manifest.plan.placed}
        self._feature_dims = {submodel.id: submodel.feature_dim for submodel in manifest.submodels}
        self._demands = [
            Demand(submodel.id, submodel.peak_memory_bytes, submodel.flops) for submodel in manifest.submodels
        ]
        self._moved: Placement = {}
        self._copies: Placement = {}

    def routes(self) -> dict[int, Expected]:
        """The device that is asked for each sub-model that one is ready for: see `Reconciler.routes`."""
        holders: dict[int, list[str]] = {}
        for name, device in self._devices.items():
            for submodel in device.ready:
                holders.setdefault(submodel, []).append(name)
        found = {}
        for submodel, home in self._planned.items():
            if submodel in holders:
                first, second = home, self._moved.get(submodel, home)
                order = sorted(
                    holders[submodel],
                    key=lambda name: (self._devices[name].breaker.suspected, name != first, name != second),
                )
                found[submodel] = Expected(order[0], self._feature_dims[submodel], copy=next(iter(order[1:]), None))
        return found

    def note_who_is_away(self, now: float) -> None:
        """Decide which devices are away; `now` is `time.monotonic()`."""
        for device in self._devices.values():
            for_s = now - device.since
            if device.breaker.closed:
                device.away = device.away and for_s < min(HOME_AFTER_S, self._after_s)
            elif device.state != "loading":
                grace_s = self._after_s if device.seen else max(MEND_FIRST_S, self._after_s)
                device.away = device.away or for_s > grace_s

    def mend(self, now: float) -> bool:
        """Decide what each device shall hold, and have those looked at now for which that is new. Whether any is."""
        homeless = {submodel for submodel, home in self._planned.items() if self._devices[home].away}
        substitutes = set(self._moved.values())
        here = [
            device.with_room(self._digest)
            for name, device in self._devices.items()
            if device.breaker.closed or (name in substitutes and not device.away)
        ]
        before = {submodel: name for submodel, name in self._copies.items() if self._devices[name].breaker.closed}
        before |= self._moved  # a copy that is there already is the best substitute
        moved = mend(self._demands, self._fleet, here, planned=self._planned, homeless=homeless, moved=before)
        copies = self._second_copies(moved)
        if moved != self._moved:
            log.info("sub-models that are on other devices than planned: %s", moved or "none")
        if copies != self._copies:
            log.info("second copies of sub-models are on: %s", copies or "none")
        if (moved, copies) == (self._moved, self._copies):
            return False
        self._moved, self._copies = moved, copies
        for device in self._devices.values():
            if device.hold(moved, copies):
                device.look_at = now
        return True

    def _second_copies(self, moved: Placement) -> Placement:
        if self._replicas < 2:
            return {}
        if not all(device.seen or device.away for device in self._devices.values() if device.planned):
            return self._copies  # those that come first would take them all
        holders = {*moved.values(), *self._copies.values()}
        here = [
            device.with_room(self._digest)
            for name, device in self._devices.items()
            if not device.away and (device.breaker.closed or name in holders)
        ]
        return second_copies(self._demands, here, first={**self._planned, **moved}, copies=self._copies)

    def adopt(self, name: str, held: frozenset[int]) -> None:
        """Take over where an earlier gateway, or the one in charge, has put sub-models of devices that are gone."""
        moved = {submodel: where for submodel, where in self._moved.items() if where != name}
        copies = {submodel: where for submodel, where in self._copies.items() if where != name}
        for submodel in held - set(self._devices[name].planned):
            home = self._devices[self._planned[submodel]]
            if self._replicas > 1 and self._moved.get(submodel) != name:
                copies.setdefault(submodel, name)
            elif not home.breaker.closed and submodel not in moved:
                moved[submodel] = name
                home.away = True
        self._moved, self._copies = moved, copies
        self._devices[name].hold(moved, copies)
