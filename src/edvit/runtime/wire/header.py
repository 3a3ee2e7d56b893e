"""Every message: a strict header as JSON, and a payload of raw bytes.

A header says how many bytes its payload must have; `decode` refuses everything that contradicts itself before a byte of
the payload is used.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from edvit.errors import VersionError, WireError, printable
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES, Packet
from edvit.validation import first_problem

WIRE_VERSION: Literal[3] = 3
"""Version of the protocol: the field `wire` of every header and every error."""
MAX_HEADER_BYTES = 64 * 1024

H = TypeVar("H", bound="Header")


class Header(BaseModel):
    """Base of every header: immutable, no unknown fields, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    wire: Literal[3] = WIRE_VERSION

    @field_validator("*")
    @classmethod
    def _text_is_printable(cls, value: object) -> object:
        """Whatever comes from the network passes here, before it can reach a terminal, a log or a page."""
        return printable(value) if isinstance(value, str) else value

    @property
    def payload_bytes(self) -> int:
        """Bytes that the payload must have."""
        return 0


class _Version(BaseModel):
    """The one field that headers of every version have."""

    wire: int


def encode(header: Header, payload: bytes = b"") -> Packet:
    """Pack a message. Raises ValueError if the payload is not what the header says (a defect of the caller)."""
    if len(payload) != header.payload_bytes:
        raise ValueError(f"the payload has {len(payload)} bytes where its header says {header.payload_bytes}")
    return Packet(header=header.model_dump_json().encode(), payload=payload)


def decode(kind: type[H], packet: Packet, max_payload: int = MAX_PAYLOAD_BYTES) -> H:
    """Check a message against its type, and its payload's size against its header.

    Raises:
        VersionError: it is of another wire version.
        WireError: the header is too large or malformed, or the payload has another size.
    """
    name = kind.__name__
    if len(packet.header) > MAX_HEADER_BYTES:
        raise WireError(f"{name}: header of {len(packet.header):,} bytes, at most {MAX_HEADER_BYTES:,} are accepted")
    try:
        header = kind.model_validate_json(packet.header)
    except ValidationError as error:
        _check_version(packet.header)
        raise WireError(f"{name}: malformed header: {first_problem(error)}") from None
    if header.payload_bytes > max_payload:
        raise WireError(f"{name}: payload of {header.payload_bytes:,} bytes, at most {max_payload:,} are accepted")
    if len(packet.payload) != header.payload_bytes:
        raise WireError(
            f"{name}: payload has {len(packet.payload):,} bytes where its header says {header.payload_bytes:,}"
        )
    return header


def _check_version(header: bytes) -> None:
    """Raises VersionError where the header says another version than ours."""
    try:
        version = _Version.model_validate_json(header).wire
    except ValidationError:
        return
    if version != WIRE_VERSION:
        raise VersionError(
            f"a peer speaks wire version {version}, and this program {WIRE_VERSION}: "
            "install the same version of edvit on the devices and the gateway"
        )
