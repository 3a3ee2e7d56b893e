"""What the console of `edvit serve` says of second copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edvit.units import counted

if TYPE_CHECKING:
    from edvit.runtime.gateway.device_state import DeviceStatus
    from edvit.runtime.gateway.hedging import CopiesAsked

EVERY_S = 60.0
"""How often is said how many times copies were asked, where they were."""
SETTLED_S = 5.0
"""What has no copy is said once it has been the same for so long."""


class CopyLines:
    """Finds the lines to say; it is asked again and again.

    Args:
        replicas: as the gateway has it; with 1 nothing is said.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._without: tuple[int, ...] | None = None
        self._without_since = 0.0
        self._said_without: tuple[int, ...] | None = None
        self._asked = (0, 0)
        self._said_at = 0.0

    def new(self, devices: Sequence[DeviceStatus], asked: CopiesAsked, now: float) -> list[str]:
        """What is to be said now, one line each; `now`: seconds of a clock that never goes back."""
        if self._replicas < 2:
            return []
        without = without_copy(devices)
        if without != self._without:
            self._without, self._without_since = without, now
        lines = []
        if without != self._said_without and now - self._without_since >= SETTLED_S:
            self._said_without = without
            lines.append(
                f"without a second copy: sub-model {', '.join(map(str, without))}; no other device is there with room"
                if without
                else "every sub-model has a second copy"
            )
        late, ended = asked.late - self._asked[0], asked.ended - self._asked[1]
        if late + ended and now - self._said_at >= EVERY_S:
            self._asked, self._said_at = (asked.late, asked.ended), now
            lines.append(
                f"second copies were asked {counted(late + ended, 'time')}: {late} as a device was late, "
                f"{ended} as one ended a request"
            )
        return lines


def without_copy(devices: Sequence[DeviceStatus]) -> tuple[int, ...]:
    """The planned sub-models that fewer than two devices hold."""
    held = [submodel for device in devices if device.alive for submodel in device.submodels]
    planned = {submodel for device in devices for submodel in device.planned}
    return tuple(sorted(submodel for submodel in planned if held.count(submodel) < 2))
