"""Faults that are done at random to the devices of a `served_fleet.ServedFleet`: killed, stopped, brought back."""

from __future__ import annotations

import collections
import threading

KINDS = ("kill", "stop")


class RandomFaults:
    """Does one fault after the other. Two devices at least stay there and ready: every request has an answer.

    Args:
        random: draws them.
        pause_s: the mean pause after each, seconds.

    Attributes:
        counts: how often each kind was done.
        away: what was done to each device that is not back.
    """

    def __init__(self, fleet, random, pause_s):
        self.counts = collections.Counter()
        self.away = {}
        self._fleet, self._random, self._pause_s = fleet, random, pause_s

    def do(self, count, over=None):
        """Do so many faults, or fewer where the event `over` is set before."""
        over = over or threading.Event()
        while count > 0 and not over.is_set():
            count -= self._one()
            over.wait(self._random.expovariate(1 / self._pause_s))

    def return_all(self):
        """Bring every device back."""
        for name in [*self.away]:
            self._return(name)

    def _one(self):
        """Do one; returns how many were done, which is 0 where the fleet can bear none just now."""
        here = [name for name in self._fleet.devices if name not in self.away]
        choices = [("return", name) for name in self.away]
        if sum(self._fleet.device(name).state == "ready" for name in here) > 2:
            choices += [(kind, name) for name in here for kind in KINDS]
        if not choices:
            return 0
        kind, name = self._random.choice(choices)
        if kind == "return":
            self._return(name)
        else:
            device = self._fleet.devices[name]
            (device.kill if kind == "kill" else device.stop)()
            self.away[name] = kind
        self.counts[kind] += 1
        return 1

    def _return(self, name):
        if self.away.pop(name) == "stop":
            self._fleet.devices[name].go_on()
        else:
            self._fleet.start_device(name)
