"""Ports and endpoints for tests that start real processes."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_endpoint() -> str:
    """A Zenoh endpoint on such a port."""
    return f"tcp/127.0.0.1:{free_port()}"
