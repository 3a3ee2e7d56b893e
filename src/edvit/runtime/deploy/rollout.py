"""Rolling a new bundle out: devices load it beside the old one, the gateway switches, devices drop the old one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from threading import Event

from edvit.bundle import Manifest
from edvit.errors import BundleError, DeadlineError, DeployError, MemoryLimitError
from edvit.runtime.deploy.folder import BundleFolder
from edvit.runtime.deploy.switch import Serving, Switch
from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.lease import Lease
from edvit.units import counted

POLL_S = 0.05
PATIENCE_S = 10.0
"""A device may have a problem for so long, while the gateway tries again, before the new bundle is given up."""
SETTLE_S = 1.0
"""Where a sub-model has no device, devices must be warm for so long: it may be about to be placed on one."""
DRAIN_S = 60.0
"""Requests that are under way on the old bundle are waited for so long; the body of one may take 30 s to arrive."""

Say = Callable[[str], None]
"""Tells one step to a person."""


def check_fits(new: Manifest, old: Manifest, devices: Collection[DeviceStatus]) -> None:
    """Check whether a new bundle can be rolled out on a fleet, before anything of it is sent to a device.

    Args:
        devices: of the gateway that serves the old bundle.

    Raises:
        BundleError: it is of another fleet, or its plan names a device that the gateway does not know.
        MemoryLimitError: a device has no room for the sub-models of both; the message names it, and the bytes.
    """
    fleet = old.plan.fleet
    if new.plan.fleet.name != fleet.name:
        raise BundleError(
            f"the bundle was built for fleet {new.plan.fleet.name}, and the gateway serves fleet {fleet.name}: "
            "build it for that fleet"
        )
    known = {device.name for device in fleet.devices}
    unknown = sorted({line.device for line in new.plan.placed} - known)
    if unknown:
        raise BundleError(
            f"the bundle's plan names {', '.join(unknown)}, and the gateway's fleet has {', '.join(sorted(known))}: "
            "build it for these devices, or stop the gateway and start it with the new bundle"
        )
    limits = {device.name: device.memory_bytes for device in new.plan.fleet.devices}
    for device in devices:
        needed = sum(
            new.submodel(line.submodel).peak_memory_bytes for line in new.plan.placed if line.device == device.name
        )
        if not needed or device.state != "ready":
            continue
        held = sum(old.submodel(submodel).peak_memory_bytes for submodel in device.submodels)
        limit = min(limits[device.name], device.memory_limit_bytes or limits[device.name])
        if held + needed > limit:
            raise MemoryLimitError(
                f"device {device.name} has no room for both bundles: it serves {held:,} bytes, the new sub-models need "
                f"{needed:,} bytes, and its limit is {limit:,} bytes; raise the limit, or stop the gateway and start "
                "it with the new bundle"
            )


def changes(new: Manifest, old: Manifest) -> str | None:
    """What differs for clients, in one line; None for nothing."""
    before, after = old.data.classes, new.data.classes
    lines = []
    if added := [name for name in after if name not in before]:
        lines.append(f"new {', '.join(added)}")
    if gone := [name for name in before if name not in after]:
        lines.append(f"gone {', '.join(gone)}")
    if not lines and before != after:
        lines.append("the same in another order, so that their indices change")
    found = [f"classes: {'; '.join(lines)}"] if lines else []
    if new.preprocessing.shape != old.preprocessing.shape:
        found.append(f"input: {list(new.preprocessing.shape)} in place of {list(old.preprocessing.shape)}")
    return "; ".join(found) or None


def roll_out(
    switch: Switch,
    make: Callable[[Collection[str]], Serving],
    digest: str,
    *,
    lease: Lease,
    folder: BundleFolder,
    until: float,
    closing: Event,
    say: Say,
) -> None:
    """Bring the bundle in `folder.incoming` to the devices, and serve it in place of the old one.

    Until the switch every error leaves the old bundle served, in its folder, and the devices without the new one.

    Args:
        switch: serves the old bundle.
        make: makes what serves the new one, from the names of the devices that are away.
        digest: of the new bundle.
        lease: says what this gateway serves.
        until: `time.monotonic()` by which devices must be warm, seconds.
        closing: set when the gateway ends.
        say: is told each step.

    Raises:
        EdvitError: why the new bundle was given up, one line.
    """
    old = switch.current
    devices = [device for device in old.gateway.devices() if device.in_fleet]
    away = [device.name for device in devices if device.state != "ready"]
    required = [device.name for device in devices if device.state == "ready"]
    if away:
        say(f"away: {', '.join(away)}; not waited for, will load the new sub-models when back")
    old.gateway.keep_beside((digest,))
    new: Serving | None = None
    try:
        new = make(away)
        _wait_warm(old, new, required, until=until, closing=closing, say=say)
        if (other := lease.in_charge()) is not None:
            raise DeployError(f"the gateway on {other.host} is in charge of the fleet now: deploy to that one")
        folder.take_place()
    except BaseException:
        if new is not None:
            new.close(keep=old)
        old.gateway.keep_beside(())
        raise
    old.gateway.moved_to(folder.previous)
    new.gateway.moved_to(folder.path)
    lease.serve(digest)
    switch.turn_to(new)
    say(f"switched: the gateway answers with bundle {digest[:12]}")
    until = time.monotonic() + DRAIN_S
    while not switch.wait_unused(old, POLL_S) and time.monotonic() < until and not closing.is_set():
        pass
    old.gateway.dismiss({device.name for device in devices} - new.gateway.lacking().keys())
    old.close(keep=new)
    new.gateway.keep_beside(())


def _wait_warm(
    old: Serving, new: Serving, required: Collection[str], *, until: float, closing: Event, say: Say
) -> None:
    """Wait until every device that serves has answered a first inference of each of its new sub-models.

    Raises:
        MemoryLimitError: a device refuses them.
        DeadlineError: some are not warm in time.
        DeployError: a device goes away, or has a problem for too long, or the gateway ends.
    """
    patience = _Patience()
    told: int | None = None
    warm_since: float | None = None
    while True:
        now = time.monotonic()
        before = {device.name: device for device in old.gateway.devices()}
        after = {device.name: device for device in new.gateway.devices() if device.in_fleet}
        lacking = {name: submodels for name, submodels in new.gateway.lacking().items() if name in required}
        holders = [name for name in lacking if after[name].planned]
        warm = sum(not lacking[name] for name in holders)
        if warm != told:
            say(f"warm: {warm} of {counted(len(holders), 'device')}")
            told = warm
        warm_since = None if any(lacking.values()) else warm_since or now
        if warm_since is not None and (new.gateway.is_ready() or now - warm_since >= SETTLE_S):
            if missing := new.gateway.missing():
                say(f"no device for sub-model {', '.join(map(str, missing))} now; answers are degraded until there is")
            return
        for name in lacking:
            patience.check(before[name], after[name], now)
        if closing.is_set():
            raise DeployError("the gateway ends: deploy again when it has started again")
        if now > until:
            rest = "; ".join(f"{name}, sub-model {', '.join(map(str, left))}" for name, left in lacking.items() if left)
            raise DeadlineError(f"devices have not loaded the new bundle in time: {rest or 'none is left'}")
        closing.wait(POLL_S)


class _Patience:
    """Tells a device that has failed from one whose problem may pass."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def check(self, before: DeviceStatus, after: DeviceStatus, now: float) -> None:
        """Raises an error where a device will not get warm.

        Args:
            before: as the gateway of the old bundle sees it.
            after: as that of the new one does.
            now: `time.monotonic()`.
        """
        name = before.name
        if before.state == "offline":
            raise DeployError(f"device {name} went away while it loaded the new sub-models")
        if after.state == "refused":
            raise MemoryLimitError(f"device {name}: {after.problem}")
        problem = after.problem
        if problem is None and before.state != "ready":
            problem = before.problem or "the device does not serve the old bundle any more"
        if problem is None:
            self._since.pop(name, None)
        elif now - self._since.setdefault(name, now) > PATIENCE_S:
            raise DeployError(f"device {name}: {problem}")
