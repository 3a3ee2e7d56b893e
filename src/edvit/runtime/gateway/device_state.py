"""What is known of one device of the fleet, and what others see of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edvit.fleet import Device
from edvit.plan.plan import Placement
from edvit.runtime.gateway.breaker import Breaker, BreakerState
from edvit.runtime.wire.messages import DeviceInfo

SETTLE_FIRST_S = 0.1
"""The first pause between looks at which of several processes of one name answer."""

State = Literal["offline", "silent", "loading", "ready", "refused"]


@dataclass(frozen=True)
class DeviceStatus:
    """What the gateway knows of one device."""

    name: str
    alive: bool
    """Whether it is there and answers."""
    planned: tuple[int, ...]
    """Ids of the sub-models the plan places on it; empty for a spare device."""
    submodels: tuple[int, ...]
    """Ids of the sub-models it holds, ready to answer."""
    memory_bytes: int
    """Memory of what it holds, as the plan counts it."""
    memory_limit_bytes: int | None
    """The smaller of its limit in the fleet and the one it was started with; None where there is neither."""
    host: str | None
    pid: int | None
    problem: str | None
    """Why it does not hold what is planned, one line."""
    in_fleet: bool = True
    """False for a device that is alive under a name that the fleet does not have."""
    state: State = "ready"
    """`silent`: the network says that it is there, but it does not answer. `refused`: it refuses what is planned."""
    copies: tuple[int, ...] = ()
    """Those of `submodels` that are second copies: their first copy is on another device."""
    breaker: BreakerState = "closed"
    """Whether requests go to it."""


@dataclass(frozen=True)
class Refusal:
    """What a device refuses for good, as asking again gives it no more memory, and why, one line."""

    target: tuple[int, ...]
    reason: str


@dataclass
class DeviceState:
    """What the reconciler knows of one device of the fleet."""

    device: Device
    planned: tuple[int, ...]
    target: tuple[int, ...]
    """What it shall hold now: `planned`, what it holds for devices that are gone, and second copies."""
    copies: frozenset[int] = frozenset()
    """Those of `target` that are second copies."""
    present: dict[str, None] = field(default_factory=dict)
    """Every process of this name that the network says is alive, oldest first."""
    instance: str | None = None
    """The one that is taken for the device; None while there is none."""
    breaker: Breaker = field(default_factory=Breaker)
    answers: bool = False
    """Whether it answered when it was last asked anything."""
    seen: bool = False
    """Whether it has ever been ready."""
    refusal: Refusal | None = None
    info: DeviceInfo | None = None
    tried: frozenset[int] = frozenset()
    """Sub-models of which it has answered a first inference."""
    problem: str | None = None
    look_at: float = 0.0
    settle_at: float = 0.0
    settle_pause_s: float = SETTLE_FIRST_S
    since: float = 0.0
    """When it was last seen to become ready or to cease to be, `time.monotonic()`."""
    away: bool = False
    """It is gone for longer than the grace time, or not back for long enough."""

    @property
    def ready(self) -> frozenset[int]:
        """Sub-models that it is asked for."""
        return self.tried if self.breaker.closed else frozenset()

    def reset(self, instance: str | None, now: float) -> None:
        """Take another process for the device, or none."""
        if self.breaker.closed:
            self.since = now
        self.instance, self.breaker, self.answers, self.refusal = instance, Breaker(), False, None
        self.info, self.tried, self.problem = None, frozenset(), None

    @property
    def refuses(self) -> str | None:
        """Why it refuses its target for good; None where it does not."""
        return self.refusal.reason if self.refusal is not None and self.refusal.target == self.target else None

    @property
    def state(self) -> State:
        """What it is doing, in a word."""
        if self.instance is None:
            return "offline"
        if self.breaker.closed:
            return "ready"
        if self.refuses is not None:
            return "refused"
        return "silent" if self.problem is not None and not self.answers else "loading"

    @property
    def status(self) -> DeviceStatus:
        """The device as others may see it."""
        info = self.info
        own = info.memory_limit_bytes if info is not None else None
        return DeviceStatus(
            name=self.device.name,
            alive=self.instance is not None and self.answers,
            planned=self.planned,
            submodels=tuple(sorted(self.ready)),
            memory_bytes=info.memory_bytes if info is not None else 0,
            memory_limit_bytes=min(self.device.memory_bytes, own or self.device.memory_bytes),
            host=info.host if info is not None else None,
            pid=info.pid if info is not None else None,
            problem=self.refuses if self.state == "refused" else self.problem,
            state=self.state,
            copies=tuple(sorted(self.ready & self.copies)),
            breaker=self.breaker.state,
        )

    def hold(self, moved: Placement, copies: Placement) -> bool:
        """Set what it shall hold: its part of the plan, what it holds for others, and copies. Whether it is new."""
        own = {*self.planned, *(submodel for submodel, where in moved.items() if where == self.device.name)}
        self.copies = frozenset(submodel for submodel, where in copies.items() if where == self.device.name) - own
        target = tuple(sorted(own | self.copies))
        is_new, self.target = target != self.target, target
        return is_new

    def with_room(self, bundle: str) -> Device:
        """The device of the fleet, with the memory that is left for this bundle.

        Its limit is the one that it was started with, where that is smaller, less what it holds of other bundles.
        """
        info = self.info
        if info is None:
            return self.device
        limit = min(self.device.memory_bytes, info.memory_limit_bytes or self.device.memory_bytes)
        left = limit - info.memory_bytes_beside(bundle)
        return (
            self.device
            if left == self.device.memory_bytes
            else self.device.model_copy(update={"memory_mb": left / 1e6})
        )


def stranger(name: str) -> DeviceStatus:
    """A device that is there under a name that the fleet does not have."""
    return DeviceStatus(
        name=name,
        alive=True,
        planned=(),
        submodels=(),
        memory_bytes=0,
        memory_limit_bytes=None,
        host=None,
        pid=None,
        problem=None,
        in_fleet=False,
        state="loading",
        breaker="open",
    )
