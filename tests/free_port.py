"""Endpoints for tests that start real processes."""

from __future__ import annotations

import socket


def free_endpoint() -> str:
    """A Zenoh endpoint on a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"
