"""An error on its way: a code and one line of text, which come back as an exception of the same class."""

from __future__ import annotations

from pydantic import Field

from edvit.errors import EdvitError, VersionError, WireError, error_from
from edvit.runtime.wire.header import Header, decode
from edvit.runtime.wire.packet import Packet

MAX_ERROR_CHARS = 300


class ErrorHeader(Header):
    """An error as it travels: never more than this."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=MAX_ERROR_CHARS)


def encode_error(error: Exception) -> bytes:
    """Pack an error. What is not an `EdvitError` is told as `internal`, without any detail."""
    if isinstance(error, EdvitError) and error.code != EdvitError.code:
        header = ErrorHeader(code=error.code, message=str(error)[:MAX_ERROR_CHARS])
    else:
        header = ErrorHeader(code=EdvitError.code, message="internal error; see the log of the device or gateway")
    return header.model_dump_json().encode()


def decode_error(data: bytes) -> EdvitError:
    """The error a peer reported, as an exception of the class that has its code; `ServiceError` for unknown codes."""
    try:
        header = decode(ErrorHeader, Packet(header=data))
    except VersionError as error:
        return error
    except WireError:
        return WireError("a peer answered with a malformed error")
    return error_from(header.code, header.message)
