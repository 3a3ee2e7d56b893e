"""Devices and a gateway of a tiny bundle in one process, over the in-memory transport."""

from __future__ import annotations

import contextlib

import numpy as np

from edvit.fleet import Device, Fleet
from edvit.runtime.device.agent import DeviceAgent
from edvit.runtime.gateway.gateway import Gateway
from memory_transport import MemoryNetwork, MemoryTransport


class MemoryFleet:
    """Starts participants; everything is closed with the block."""

    def __init__(self, stack, bundle, cache):
        self._stack = stack
        self.network = MemoryNetwork()
        self.bundle = bundle
        self.cache = cache

    def node(self):
        return self._closing(MemoryTransport(self.network))

    def device(self, name, **options):
        """A running agent; `agent.node.close()` is its sudden death."""
        node = self.node()
        agent = self._closing(
            DeviceAgent(name, self.bundle.manifest.plan.fleet.name, node, cache=self.cache, **options)
        )
        agent.node = node
        return agent

    def gateway(self, *, ready=True, bundle=None, deadline_s=60.0, **options):
        gateway = self._closing(Gateway(bundle or self.bundle, self.node(), deadline_s=deadline_s, **options))
        if ready:
            gateway.wait_ready(30)
        return gateway

    def _closing(self, thing):
        self._stack.callback(thing.close)
        return thing


@contextlib.contextmanager
def memory_fleet(bundle, cache):
    with contextlib.ExitStack() as stack:
        yield MemoryFleet(stack, bundle, cache)


def fleet_of(*devices):
    """A fleet of devices, each as fleet.yaml has it."""
    return Fleet(name="local", devices=tuple(Device.model_validate(device) for device in devices))


def some_images(bundle, batch=2, seed=0):
    """uint8 `[batch, channels, height, width]` for this bundle."""
    shape = (batch, *bundle.manifest.preprocessing.shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
