"""From a request to the array that a sub-model takes, in bounded memory and without making others wait."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from starlette.requests import Request

from edvit.errors import OverloadedError, TooManyRequestsError
from edvit.inputs.preprocess import Preprocessing, UInt8
from edvit.runtime.http.body import read_array
from edvit.runtime.http.decoders import QUICK_BYTES, Decoders
from edvit.runtime.http.room import Room
from edvit.runtime.http.upload import MAX_BODY_BYTES, announced_bytes, discard_body, read_upload
from edvit.runtime.request import took

SMALL_ROOM, SMALL_ROOM_OF_A_CLIENT = 12_000_000, 6_000_000
"""Bytes of all bodies of `QUICK_BYTES` at most, and of those of one client."""

LARGE_ROOM, LARGE_ROOM_OF_A_CLIENT = 2 * MAX_BODY_BYTES, MAX_BODY_BYTES
"""The same of larger bodies."""


class Images(NamedTuple):
    """What a request asks about.

    Attributes:
        images: uint8 `[batch, channels, size, size]`.
        is_batch: the caller sent a batch rather than one image or sound.
        start: when the last byte of the request had come, by `time.perf_counter`.
        waited_s: seconds for which its file has waited for a decoder.
    """

    images: UInt8
    is_batch: bool
    start: float
    waited_s: float


class Uploads:
    """Reads and decodes what requests ask about, within one event loop.

    Raises:
        MissingExtraError: a library that `how` needs is not installed.
    """

    def __init__(self, how: Preprocessing) -> None:
        self._how = how
        self._decoders = Decoders(how)
        self._small = Room(SMALL_ROOM, SMALL_ROOM_OF_A_CLIENT)
        self._large = Room(LARGE_ROOM, LARGE_ROOM_OF_A_CLIENT)

    @asynccontextmanager
    async def read(self, request: Request, client: str, wait_s: float) -> AsyncIterator[Images]:
        """The array of a request's body, for the block: its memory is counted until the block ends.

        Args:
            client: whose request it is, as `client_of` says.
            wait_s: seconds for which its file may wait for a decoder.

        Raises:
            ImageError, SlowUploadError: as `read_upload` and `read_array`, and as `Decoders.decode` for a file.
            OverloadedError, TooManyRequestsError: there is no memory for the body, or no decoder for the file.
        """
        size = min(announced_bytes(request), MAX_BODY_BYTES)
        room = self._small if size <= QUICK_BYTES else self._large
        has_room = False
        try:
            async with room.hold(size, client) as held:
                has_room = True
                upload = await read_upload(request, held)
                start = time.perf_counter()
                array, waited_s = read_array(upload.data, upload.media_type, self._how), 0.0
                if array is None:
                    decoded, waited_s = await self._decoders.decode(upload.data, client, wait_s)
                    array = (decoded[None], False)
                took("decode", time.perf_counter() - start)
                yield Images(*array, start, waited_s)
        except (OverloadedError, TooManyRequestsError):
            if not has_room:
                await discard_body(request)
            raise

    def close(self) -> None:
        """End the processes that decode."""
        self._decoders.close()


def client_of(request: Request) -> str:
    """Who shares places and room with others: an address, or the network that a host of IPv6 has to itself."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
