"""Network namespaces of Linux, one for the gateway and one for each device, on a switch whose links can fail.

The switch is a thread of this process: it reads Ethernet frames at one end of each node's veth pair, and passes them
on, late, or not at all. Linux's own shaper, `tc netem`, is missing from many kernels. Nothing of the machine's own
network is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import heapq
import itertools
import os
import random
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare.links import namespaces, run

from edvit.errors import UnavailableError

GATEWAY = "gateway"
SUBNET = "10.77.1"
QUEUE_S = 0.5
"""A link with a rate drops frames that would wait longer: routers have queues of such lengths."""

CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 0x0003
VNET_HEADER = 10
"""Bytes before each frame that say which check sums are still to be filled in; they travel with it."""
MTU = 1500


@functools.cache
def lack():
    """Why namespaces cannot be made here, one line; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network([]):
            return ""
    except (UnavailableError, OSError) as error:
        return f"no network namespaces here: {error}"


@dataclass
class Link:
    """One direction between a node and the switch. Its attributes may be set at any time, from any thread."""

    up: bool = True
    loss: float = 0.0
    """The share of frames that are lost, 0 to 1."""
    mbps: float | None = None
    """10^6 bits a second; None for no limit."""
    held_until: float = 0.0
    _free_at: float = 0.0

    def hold(self, seconds):
        """Nothing passes for so long; then everything does that has come meanwhile."""
        self.held_until = time.monotonic() + seconds

    def passes_at(self, now, size, chance):
        """When a frame of `size` bytes that comes `now` has passed; None where it is lost. `chance`: 0 to 1, drawn."""
        if not self.up or chance < self.loss:
            return None
        start = max(now, self.held_until, self._free_at)
        if self.mbps is None:
            return start
        if self._free_at - now > QUEUE_S:
            return None
        self._free_at = start + size * 8 / (self.mbps * 1e6)
        return self._free_at


@dataclass
class Node:
    """A namespace with one interface, `eth0`.

    Attributes:
        netns: the namespace's name.
        address: IPv4.
        sends: the link from here to the switch.
        gets: the link from the switch to here.
    """

    netns: str
    address: str
    mac: bytes
    sends: Link = field(default_factory=Link)
    gets: Link = field(default_factory=Link)

    def command(self):
        """What is put before a command to run it here; it becomes the command, so its pid is the same."""
        return ["ip", "netns", "exec", self.netns]

    def links(self):
        return (self.sends, self.gets)

    @contextlib.contextmanager
    def entered(self):
        """New sockets of this thread are of this node until the block ends."""
        with _entered(self.netns):
            yield


@contextlib.contextmanager
def network(devices, seed=0):
    """One namespace for the gateway and one for each name of `devices`, until the block ends, however it ends.

    Returns Node by name; the gateway's is `GATEWAY`. `seed` decides which frames are lost.

    Raises UnavailableError where they cannot be made.
    """
    prefix = f"edvit-{os.getpid()}-{secrets.token_hex(3)}"
    nodes = {
        name: Node(f"{prefix}-{i}", f"{SUBNET}.{i + 1}", bytes([2, 0, 0, 0, 0, i + 1]))
        for i, name in enumerate([GATEWAY, *devices])
    }
    switch = f"{prefix}-switch"
    with namespaces(switch, *(node.netns for node in nodes.values())), contextlib.ExitStack() as stack:
        ports = []
        for i, node in enumerate(nodes.values()):
            _plug_in(node, switch, f"port{i}")
            with _entered(switch):
                port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                stack.callback(port.close)
                port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
                port.setblocking(False)
                port.bind((f"port{i}", ETH_P_ALL))
            ports.append((node, port))
        stack.enter_context(contextlib.closing(_Switch(ports, seed)))
        yield nodes


def _plug_in(node, switch, port):
    mac = ":".join(f"{part:02x}" for part in node.mac)
    run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.netns)
    run("ip", "-n", node.netns, "link", "set", "eth0", "address", mac)
    # Frames as a real wire has them: else up to 64 KB travel, and are lost, as one.
    for where, interface in ((switch, port), (node.netns, "eth0")):
        run("ip", "-n", where, "link", "set", interface, "gso_max_segs", "1")
    run("ip", "-n", node.netns, "address", "add", f"{node.address}/24", "dev", "eth0")
    for where, interface in ((switch, port), (node.netns, "lo"), (node.netns, "eth0")):
        run("ip", "-n", where, "link", "set", interface, "up")
    # Multicast leaves by the one interface that there is.
    run("ip", "-n", node.netns, "route", "add", "default", "dev", "eth0")


@contextlib.contextmanager
def _entered(netns):
    """The calling thread is in a namespace until the block ends."""
    with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", netns).open() as there:
        _set_namespace(there.fileno())
        try:
            yield
        finally:
            _set_namespace(home.fileno())


def _set_namespace(handle):
    # os.setns is there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(handle, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class _Switch:
    """Passes frames between ports: to the one whose address they carry, or to all others."""

    def __init__(self, ports, seed):
        self._ports = ports
        self._random = random.Random(seed)
        self._due = []
        self._order = itertools.count()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def close(self):
        self._closing.set()
        self._thread.join()

    def _run(self):
        with selectors.DefaultSelector() as selector:
            for node, port in self._ports:
                selector.register(port, selectors.EVENT_READ, node)
            while not self._closing.is_set():
                wait_s = min(0.1, max(0.0, self._due[0][0] - time.monotonic())) if self._due else 0.1
                for key, _ in selector.select(wait_s):
                    self._receive(key.data, key.fileobj)
                self._send()

    def _receive(self, source, port):
        for _ in range(64):  # then it is the turn of the others
            try:
                data = port.recv(VNET_HEADER + 65_536)
            except OSError:  # nothing more is there, or the port has gone
                return
            now, size = time.monotonic(), len(data) - VNET_HEADER
            passed = source.sends.passes_at(now, size, self._random.random())
            if passed is None:
                continue
            target = data[VNET_HEADER : VNET_HEADER + 6]
            for node, out in self._ports:
                if node is source or not (target[0] & 1 or target == node.mac):
                    continue
                arrives = node.gets.passes_at(passed, size, self._random.random())
                if arrives is not None:
                    heapq.heappush(self._due, (arrives, next(self._order), out, data))

    def _send(self):
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            *_, port, data = heapq.heappop(self._due)
            with contextlib.suppress(OSError):  # no room for more: lost, as in a real switch
                port.send(data)
