"""Which addresses others than this machine can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback interface: `localhost`, `127.0.0.1`, `::1`, `[::1]`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def wanting_keys(endpoints: Iterable[str]) -> list[str]:
    """Those of some endpoints, `PROTOCOL/HOST:PORT`, that others can reach, or that are asked to speak TLS."""

    def wants(endpoint: str) -> bool:
        protocol, _, address = endpoint.partition("/")
        return protocol == "tls" or not is_loopback(address.rpartition(":")[0])

    return [endpoint for endpoint in endpoints if wants(endpoint)]
