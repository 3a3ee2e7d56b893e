"""Which devices have fallen silent: they have been asked something, and answer nothing for much longer than they do.

Under load a request waits in a queue for most of its deadline. A device that hangs is seen much sooner by the time that
has passed since it answered anything.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edvit.errors import DeadlineError
from edvit.runtime.gateway.deadline import ENOUGH, EVERY, WINDOW, learned_s
from edvit.runtime.wire.transport import Failure, Replies


class GivenUpError(DeadlineError):
    """The device has fallen silent; whoever waits for it need not wait any longer."""

    def __init__(self, device: str) -> None:
        super().__init__(f"device {device} has fallen silent")
        self.device = device


@dataclass
class _Device:
    open: dict[Replies, int] = field(default_factory=dict)
    """The requests that it has not answered, with their batch sizes."""
    asked_at: float = -math.inf
    """When it was last asked."""
    since: float = 0.0
    """When it was last heard, or was asked with nothing else open, `time.monotonic()`."""
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Seconds of silence before its last answers, for one image."""
    heard: int = 0
    heard_at: float = -math.inf
    patience_s: float | None = None
    """Silence for one image after which it is given up; None until enough is known."""

    def is_silent(self, now: float) -> bool:
        if self.patience_s is None or not self.open:
            return False
        return now - self.since > self.patience_s * max(self.open.values())


class Silence:
    """What every device has been asked, and when it was last heard. Thread-safe."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._lock = threading.Lock()

    def asked(self, devices: Iterable[str], batch: int, replies: Replies) -> None:
        """The devices are asked about so many images; `replies` brings their answers."""
        now = time.monotonic()
        with self._lock:
            for name in devices:
                device = self._devices.setdefault(name, _Device())
                if not device.open:
                    device.since = now
                device.asked_at = now
                device.open[replies] = batch

    def heard(self, name: str) -> None:
        """A good answer came from this device."""
        now = time.monotonic()
        with self._lock:
            device = self._devices[name]
            device.gaps.append((now - device.since) / max(device.open.values(), default=1))
            device.since = device.heard_at = now
            device.heard += 1
            if device.heard >= ENOUGH and device.heard % EVERY == 0:
                device.patience_s = learned_s(device.gaps)

    def heard_since(self, name: str, when: float) -> bool:
        """Whether a good answer to anybody came from this device after `when`, `time.monotonic()`."""
        with self._lock:
            return self._devices[name].heard_at > when

    def answered(self, name: str, replies: Replies) -> None:
        """This device owes nothing more of these, though others may."""
        with self._lock:
            self._devices[name].open.pop(replies, None)

    def ended(self, replies: Replies) -> None:
        """Nobody waits for these any more."""
        with self._lock:
            for device in self._devices.values():
                device.open.pop(replies, None)

    def give_up(self) -> tuple[str, ...]:
        """The devices that have fallen silent. Whoever waits for one is told, by a `GivenUpError` among the replies.

        Where most of the devices that are asked are silent at once none is given up, as it is the gateway or its
        network that is held up. Nobody else answers where there is one device left.
        """
        now = time.monotonic()
        with self._lock:
            found = [name for name, device in self._devices.items() if device.is_silent(now)]
            began = min((self._devices[name].since for name in found), default=now)
            if 2 * len(found) > sum(device.asked_at >= began for device in self._devices.values()):
                return ()
            for name in found:
                self._release(name)
        return tuple(found)

    def release(self, name: str) -> None:
        """Tell whoever waits for this device that it need not wait any longer."""
        with self._lock:
            if name in self._devices:
                self._release(name)

    def _release(self, name: str) -> None:
        for replies in self._devices[name].open:
            replies.put(Failure(GivenUpError(name)))
        self._devices[name].open.clear()
