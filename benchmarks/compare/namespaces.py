"""Network namespaces of Linux, one for the gateway and one for each device, on a switch with shaped links."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare.links import LinkSpec, means, namespaces, run, shape
from edvit.errors import ConfigError, UnavailableError

MAX_DEVICES = 250
_SUBNET = "10.77.0"


@dataclass(frozen=True)
class Node:
    """A namespace with one interface, `eth0`."""

    name: str
    """Name of the namespace."""
    address: str
    """IPv4."""


@dataclass(frozen=True)
class Network:
    """What `network` made: node 0 is the gateway, node i the i-th device."""

    nodes: tuple[Node, ...]
    _started: list[subprocess.Popen[Any]] = field(default_factory=list, repr=False, compare=False)

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside a node; `ip netns exec` becomes it, so its pid is the same."""
        return ["ip", "netns", "exec", self.nodes[node].name, *command]

    def start(self, node: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside a node. The process is killed when the network is taken down."""
        process = subprocess.Popen(self.command(node, command), **options)
        self._started.append(process)
        return process

    def sent_bytes(self, node: int) -> int:
        """Bytes that a node's interface has sent so far, every header included."""
        path = Path("/sys/class/net/eth0/statistics/tx_bytes")
        done = subprocess.run(self.command(node, ["cat", str(path)]), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(f"the counters of {self.nodes[node].name} cannot be read")
        return int(done.stdout)


@contextlib.contextmanager
def network(devices: int, link: LinkSpec) -> Iterator[Network]:
    """One namespace for the gateway and one a device, until the block ends, however it ends.

    All hang on a bridge, which has a namespace too, so that nothing of the machine's own network is touched. What a
    node sends is shaped at its `eth0` (rate, delay, loss), what it receives at its port of the bridge (rate): the
    gateway's inputs share its uplink, and a message between any two nodes takes the delay once.

    Args:
        devices: 1 to 250.

    Raises:
        ConfigError: another number of devices.
        UnavailableError: this machine cannot make them; the message says why.
    """
    if not 1 <= devices <= MAX_DEVICES:
        raise ConfigError(f"a network of namespaces has 1 to {MAX_DEVICES} devices, not {devices}")
    possible = means(link)
    if possible.kind != "shaped":
        raise UnavailableError(f"the link {link} cannot be shaped: {possible.reason}")
    run_name = f"edvit-{secrets.token_hex(4)}"
    nodes = tuple(Node(f"{run_name}-{i}", f"{_SUBNET}.{i + 1}") for i in range(devices + 1))
    switch = f"{run_name}-switch"
    with namespaces(switch, *(node.name for node in nodes)):
        run("ip", "-n", switch, "link", "add", "bridge0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge0", "up")
        for i, node in enumerate(nodes):
            _plug_in(node, switch, f"port{i}", link)
        made = Network(nodes)
        try:
            yield made
        finally:
            _kill(made)


def _plug_in(node: Node, switch: str, port: str, link: LinkSpec) -> None:
    run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.name)
    # Packets as a real wire has them: else up to 64 KB travel, and are lost, as one.
    for where, interface in ((switch, port), (node.name, "eth0")):
        run("ip", "-n", where, "link", "set", interface, "gso_max_segs", "1")
    run("tc", "-n", switch, "qdisc", "add", "dev", port, "root", *shape(LinkSpec(link.mbps)))
    run("tc", "-n", node.name, "qdisc", "add", "dev", "eth0", "root", *shape(link))
    run("ip", "-n", switch, "link", "set", port, "master", "bridge0", "up")
    run("ip", "-n", node.name, "address", "add", f"{node.address}/24", "dev", "eth0")
    for interface in ("lo", "eth0"):
        run("ip", "-n", node.name, "link", "set", interface, "up")


def _kill(made: Network) -> None:
    """A namespace lives on, nameless, as long as a process is in it."""
    for process in made._started:
        if process.poll() is None:
            process.kill()
        process.wait()
