"""The link by which the gateway and each device hang on one switch, and whether this machine can shape such a link."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edvit.errors import ConfigError, UnavailableError

PACKET_BYTES = 1448
"""Payload of one full TCP segment on Ethernet: 1500 less the IPv4 and TCP headers and the time stamps."""

_RATE = re.compile(r"(?P<value>[0-9]+(\.[0-9]+)?)(?P<unit>kbit|mbit|gbit)")
_DELAY = re.compile(r"(?P<value>[0-9]+(\.[0-9]+)?)ms")
_LOSS = re.compile(r"(?P<value>[0-9]+(\.[0-9]+)?)%")
_MBPS = {"kbit": 1e-3, "mbit": 1.0, "gbit": 1e3}


@dataclass(frozen=True)
class LinkSpec:
    """One full-duplex link; every node of a comparison, the gateway too, has one of its own to the switch.

    Attributes:
        mbps: 10^6 bits per second, each way.
        delay_ms: one way between any two nodes, milliseconds; a round trip takes twice as long.
        loss: share of packets that are lost on the way between any two nodes, 0 to below 1.

    Raises:
        ConfigError: a value that no link has.
    """

    mbps: float
    delay_ms: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mbps) and self.mbps > 0):
            raise ConfigError(f"a link's rate must be above 0 Mbit/s, not {self.mbps:g}")
        if not (math.isfinite(self.delay_ms) and self.delay_ms >= 0):
            raise ConfigError(f"a link's delay must be at least 0 ms, not {self.delay_ms:g}")
        if not 0 <= self.loss < 1:
            raise ConfigError(f"a link's loss must be from 0 % to below 100 %, not {100 * self.loss:g} %")

    def __str__(self) -> str:
        parts = [f"{self.mbps:g}mbit"]
        parts += [f"{self.delay_ms:g}ms"] if self.delay_ms or self.loss else []
        parts += [f"{100 * self.loss:g}%"] if self.loss else []
        return ",".join(parts)

    def sending_s(self, size_bytes: float) -> float:
        """Seconds for which `size_bytes` keep a link busy: what is lost is sent again."""
        return size_bytes * 8 / (self.mbps * 1e6 * (1 - self.loss))

    def waiting_s(self, size_bytes: float) -> float:
        """Seconds that a message of `size_bytes` is under way besides `sending_s`.

        The delay, and one more round trip for every packet that is expected to be lost. TCP is worse where the last
        packet of a message is lost (it waits for a timer) and better where two of one round trip are.
        """
        lost = math.ceil(size_bytes / PACKET_BYTES) * self.loss / (1 - self.loss)
        return self.delay_ms / 1e3 * (1 + 2 * lost)


def parse_link(text: str) -> LinkSpec:
    """`RATE[,DELAY[,LOSS]]`: `100mbit`, `100mbit,5ms`, `1gbit,0.5ms,1%`.

    Raises:
        ConfigError: the text is something else.
    """
    parts = text.strip().lower().split(",")
    patterns = (_RATE, _DELAY, _LOSS)
    found = [pattern.fullmatch(part.strip()) for pattern, part in zip(patterns, parts, strict=False)]
    if len(parts) > len(patterns) or None in found:
        raise ConfigError(f"{text!r} is no link: write RATE,DELAY,LOSS, for example 100mbit or 100mbit,5ms,1%")
    values = [float(match["value"]) for match in found if match]
    rate = found[0]
    unit = _MBPS[rate["unit"]] if rate else 1.0
    delay_ms, percent = (*values[1:], 0.0, 0.0)[:2]
    return LinkSpec(values[0] * unit, delay_ms, percent / 100)


@dataclass(frozen=True)
class Means:
    """How a comparison can have links of a kind on this machine."""

    kind: Literal["shaped", "modelled"]
    """`shaped`: real sockets between network namespaces. `modelled`: by formula alone."""
    reason: str
    """Why it is only modelled; empty where it is shaped."""


def means(link: LinkSpec) -> Means:
    """What is possible here for `link`: found out by trying in a namespace that is removed at once."""
    return _tried(needs_netem(link))


def needs_netem(link: LinkSpec) -> bool:
    """Whether a rate alone is not enough."""
    return link.delay_ms > 0 or link.loss > 0


@functools.cache
def _tried(netem: bool) -> Means:
    for command in ("ip", "tc"):
        if shutil.which(command) is None:
            return Means("modelled", f"there is no {command} command here (Linux, iproute2)")
    name = f"edvit-{secrets.token_hex(4)}-probe"
    try:
        with namespaces(name):
            # A veth pair and a bridge as well: a kernel can have namespaces and not these.
            run("ip", "-n", name, "link", "add", "bridge0", "type", "bridge")
            run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "port0")
            run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", *shape(LinkSpec(100.0)))
            if netem:
                slow = shape(LinkSpec(100.0, 1.0))
                try:
                    run("tc", "-n", name, "qdisc", "add", "dev", "port0", "root", *slow)
                except UnavailableError:
                    return Means("modelled", "this kernel has no netem, which delay and loss need")
    except UnavailableError as error:
        return Means("modelled", f"no network namespaces here: {error}")
    return Means("shaped", "")


def shape(link: LinkSpec) -> list[str]:
    """The arguments of `tc qdisc add ... root` that make an interface send as over `link`."""
    rate = f"{round(link.mbps * 1e6)}bit"
    if needs_netem(link):
        loss = ["loss", f"{100 * link.loss:g}%"] if link.loss else []
        return ["netem", "limit", "10000", "delay", f"{round(link.delay_ms * 1e3)}us", *loss, "rate", rate]
    # What fits in the bucket is not slowed down at all: no more than two packets, or what a timer needs.
    bucket = max(2 * 1514, round(link.mbps * 1e6 / 8 * 0.25e-3))
    return ["tbf", "rate", rate, "burst", f"{bucket}b", "limit", "1mb"]


# --- the commands ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Network namespaces, with all their interfaces, until the block ends or this process does, however it ends.

    Raises:
        UnavailableError: they cannot be made.
    """
    # They outlive a process that is killed. This one waits for the pipe to close, which even then it does, and removes
    # them; what is not there is no error. A session of its own keeps Ctrl-C from it.
    remove = 'cat; for name; do ip netns delete "$name"; done'
    with subprocess.Popen(
        ["/bin/sh", "-c", remove, "sh", *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        for name in names:
            run("ip", "netns", "add", name)
        yield


def run(*command: str) -> None:
    """Run a command of iproute2. Raises UnavailableError with the last line that it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be started ({error.strerror})") from None
    if done.returncode != 0:
        raise UnavailableError(_last_line(done.stderr.splitlines()) or f"{' '.join(command[:4])} failed")


def _last_line(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
