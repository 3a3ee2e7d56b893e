"""An upload: the one file of a request's body, read within the limits and held once, in memory alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO
from typing import NamedTuple

from anyio import fail_after, move_on_after, sleep
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from edvit.errors import ImageError, SlowUploadError, TooLargeError
from edvit.runtime.http.body import FILE, NPY
from edvit.runtime.http.room import Held

MAX_BODY_BYTES = 20_000_000
"""Larger request bodies are refused."""

MAX_LENGTH_DIGITS = 20
"""Digits of a content length that is read; Python refuses to read thousands of them."""

BODY_S = 30.0
"""Seconds that a whole body may take. The largest body needs 5.3 Mbit/s."""

MAX_FIELDS = 8
"""How many other parts a form may have beside its file."""

MAX_FIELD_BYTES = 1_048_576
"""How large each of these parts may be. They are counted and thrown away."""

DRAIN_BYTES = 100_000_000
DRAIN_S = 5.0
"""The rest of a refused body is read and thrown away, up to so many bytes and seconds. Otherwise the client would see a
broken pipe instead of the refusal."""

DRAIN_PAUSE_S = 0.005
"""Seconds between two chunks of it, for which other requests have the event loop."""

FORM = "multipart/form-data"


class Upload(NamedTuple):
    """A file or an array.

    Attributes:
        data: its bytes.
        media_type: without parameters, lower case. For the file of a form, it is `NPY` where the form says exactly
            that, and else `FILE`.
    """

    data: bytes
    media_type: str


def announced_bytes(request: Request) -> int:
    """How long the body says it is; the most that it may be where it does not say."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() and len(announced) <= MAX_LENGTH_DIGITS else MAX_BODY_BYTES


async def read_upload(request: Request, room: Held | None = None) -> Upload:
    """Read the body of a request: a form with one file, or the file itself.

    Args:
        request: none of its body has been read yet.
        room: is told how much has arrived, and may end the reading where others need it.

    Raises:
        TooLargeError: the body is, or says that it is, over `MAX_BODY_BYTES`.
        SlowUploadError: it did not arrive within `BODY_S`, or others waited for it.
        ImageError: the form is malformed or has no file, or the connection closed before the end of the body.
    """
    if announced_bytes(request) > MAX_BODY_BYTES:
        await discard_body(request)
        raise _too_large()
    room = room or Held()
    stream = request.stream()
    try:
        with fail_after(BODY_S), room.reading():
            return await _read(stream, request.headers.get("content-type", ""), room)
    except TimeoutError:
        raise SlowUploadError(
            f"the body did not arrive within {BODY_S:g} s: send a smaller file, or over a faster link"
        ) from None
    except ClientDisconnect:
        raise ImageError("the connection closed before the end of the body") from None
    except ImageError:
        await drain(stream)
        raise


async def discard_body(request: Request) -> None:
    """Throw away the body of a request that is refused before any of it was read."""
    if "expect" not in request.headers:  # a client that asks before it sends has not sent anything
        await drain(request.stream())


async def drain(stream: AsyncIterator[bytes]) -> None:
    """Throw away what is left of a body, within limits."""
    drained = 0
    with move_on_after(DRAIN_S), suppress(ClientDisconnect):
        async for chunk in stream:
            drained += len(chunk)
            if drained > DRAIN_BYTES:
                return
            await sleep(DRAIN_PAUSE_S)


async def _read(stream: AsyncIterator[bytes], content_type: str, room: Held) -> Upload:
    media_type = content_type.partition(";")[0].strip().lower()
    whole, form, size = BytesIO(), None, 0
    try:
        async for chunk in stream:
            size += len(chunk)
            room.received = size
            if size > MAX_BODY_BYTES:
                raise _too_large()
            if media_type != FORM:
                whole.write(chunk)
            elif chunk:  # an empty body is no form: `read_images` says that it is empty
                form = form or _Form(content_type)
                form.write(chunk)
        return form.upload() if form else Upload(whole.getvalue(), media_type)
    except FormParserError:
        raise ImageError("the form is malformed: send one file as multipart field `file`") from None


def _too_large() -> TooLargeError:
    return TooLargeError(f"the body is over {MAX_BODY_BYTES:,} bytes: send a smaller file")


class _Form:
    """A multipart form that arrives in chunks of any size. Its methods raise FormParserError when it is malformed.

    The parser calls the methods that begin with `_on`. It may give the name or the value of a header in several pieces.
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise FormParserError("no boundary")
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
        )
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._fields = 0
        self._field_bytes = 0
        self._in_file = False
        self._file = BytesIO()
        self._file_field: bytes | None = None
        self._media_type = FILE
        self._complete = False

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def upload(self) -> Upload:
        """The file of the form. Raises ImageError when field `file` holds none."""
        if not self._complete:  # the parser does not report that
            raise FormParserError("truncated")
        if self._file_field != b"file":
            raise ImageError("the form has no file: send it as multipart field `file`")
        return Upload(self._file.getvalue(), self._media_type)

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise FormParserError("a part without a name")
        self._in_file = b"filename" in options
        if not self._in_file:
            self._fields += 1
            self._field_bytes = 0
            if self._fields > MAX_FIELDS:
                raise FormParserError("too many fields")
        elif self._file_field is not None:
            raise FormParserError("a second file")
        else:
            self._file_field = options[b"name"]
            self._media_type = NPY if self._headers.get(b"content-type") == NPY.encode() else FILE
        self._headers.clear()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file.write(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise FormParserError("a field is too large")

    def _on_end(self) -> None:
        self._complete = True
