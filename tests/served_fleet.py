"""`edvit serve` and `edvit device` as processes, each in its network namespace, or all on loopback."""

from __future__ import annotations

import contextlib
import subprocess

import psutil

from device_processes import EDVIT, DeviceProcess
from edvit.errors import UnavailableError
from edvit.runtime.http.client import Client
from free_port import free_port
from namespaces import GATEWAY
from waiting import eventually

LONG_S = 120.0


class ServedFleet:
    """Everything that it starts ends with `stack`.

    Args:
        bundle: what is served.
        folder: for the devices' caches.
        nodes: the namespaces by name, as `namespaces.network` makes them; None for loopback.

    Attributes:
        gateway: the process that was started last.
        devices: DeviceProcess by name, the one that was started last.
        url: of the HTTP API; the same for every gateway that is started.
    """

    def __init__(self, stack, bundle, folder, nodes=None):
        self._stack = stack
        self.bundle = bundle
        self.folder = folder
        self.nodes = nodes
        self.gateway = None
        self.devices = {}
        host = nodes[GATEWAY].address if nodes else "127.0.0.1"
        self.endpoint = f"tcp/{host}:{7447 if nodes else free_port()}"
        self._http = ["--host", host, "--port", 8080 if nodes else free_port()]
        self.url = f"http://{host}:{self._http[-1]}"
        self._insecure = ["--insecure"] if nodes else []

    def entered(self):
        """New sockets of this thread are the gateway's until the block ends."""
        return self.nodes[GATEWAY].entered() if self.nodes else contextlib.nullcontext()

    def start_gateway(self, *arguments, before=(), says=None):
        """Start it and wait until it answers. What it prints goes to the file `says`, or to `gateway.log`."""
        node = self.nodes[GATEWAY].command() if self.nodes else []
        command = [*node, *before, *EDVIT, "serve", self.bundle.path, "--listen", self.endpoint, *self._http]
        with (says or self.folder / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [*map(str, command), *self._insecure, *map(str, arguments)], stdout=log, stderr=log
            )
        self._stack.callback(self.kill_gateway)
        eventually(self._answers, LONG_S)

    def _answers(self):
        assert self.gateway.poll() is None, "the gateway has ended"
        try:
            self.health()
        except UnavailableError:
            return False
        return True

    def kill_gateway(self):
        self.gateway.kill()
        self.gateway.wait()

    def start_device(self, name, *arguments, before=(), connect=True, cache=None):
        """Start a device; one of the same name that was started earlier must have ended."""
        before = [*(self.nodes[name].command() if self.nodes else ()), *before]
        where = ["--connect", self.endpoint] if connect else []
        fleet = self.bundle.manifest.plan.fleet.name
        here = ["--name", name, "--fleet", fleet, "--cache", cache or self.folder / name, "--threads", 1]
        device = DeviceProcess([*here, *where, *self._insecure, *arguments], before=before)
        self._stack.callback(device.kill)
        self.devices[name] = device
        return device

    def start_devices(self):
        for device in self.bundle.manifest.plan.fleet.devices:
            self.start_device(device.name)

    def health(self):
        with self.entered(), Client(self.url) as client:
            return client.health()

    def device(self, name):
        """What `/fleet` tells of one device."""
        with self.entered(), Client(self.url) as client:
            return next(device for device in client.fleet().devices if device.name == name)

    def predict(self, image):
        with self.entered(), Client(self.url, timeout_s=LONG_S) as client:
            return client.predict_array(image)

    def whole(self):
        """Whether every device holds what is planned for it, and no other anything of it."""
        with self.entered(), Client(self.url) as client:
            if client.health().status != "ready":
                return False
            return all(device.submodels == device.planned for device in client.fleet().devices)

    def wait_whole(self):
        eventually(self.whole, LONG_S)

    def use(self):
        """Memory (bytes), threads and handles of the gateway, with what decodes for it."""
        processes = [psutil.Process(self.gateway.pid), *psutil.Process(self.gateway.pid).children(True)]
        memory = threads = handles = 0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory += process.memory_full_info().pss
                threads += process.num_threads()
                handles += process.num_fds()
        return memory, threads, handles
