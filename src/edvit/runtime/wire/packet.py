"""A message as a transport carries it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Packet:
    """A message as bytes."""

    header: bytes
    payload: bytes = b""
