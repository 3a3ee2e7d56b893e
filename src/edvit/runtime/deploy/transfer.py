"""A bundle as one body of HTTP: the length of its manifest, the manifest, and the files that it names, in its order.

No name of a file is sent: the manifest gives the name and the length of each.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from anyio import fail_after, open_file, to_thread
from starlette.requests import ClientDisconnect

from edvit.bundle import MANIFEST, Bundle, Manifest, ModelFile, parse_manifest, place_of
from edvit.errors import BundleError, DeployError, SlowUploadError, TooLargeError

LENGTH_BYTES = 8
"""The manifest's length comes first, in so many bytes, big-endian."""

MAX_MANIFEST_BYTES = 4_000_000
MAX_BUNDLE_BYTES = 16_000_000_000
"""Larger bundles are refused."""

IDLE_S = 30.0
"""Seconds that the next bytes of a bundle may take to arrive."""
BASE_S = 60.0
SLOWEST_BYTES_PER_S = 50_000
"""A whole bundle may take `BASE_S`, and the time that this speed needs."""

PART_BYTES = 1 << 20


def files_of(manifest: Manifest) -> tuple[ModelFile, ...]:
    """The files that are sent, each path once."""
    return tuple({model.file: model for model in manifest.files()}.values())


def size_of(manifest: Manifest) -> int:
    """Bytes of all files that the manifest names."""
    return sum(model.bytes for model in files_of(manifest))


def head_of(bundle: Bundle) -> bytes:
    """The beginning of the body: the manifest, and its length before it."""
    text = (bundle.path / MANIFEST).read_bytes()
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


def body_of(bundle: Bundle) -> Iterator[bytes]:
    """The whole body, in parts."""
    yield head_of(bundle)
    for model in files_of(bundle.manifest):
        with bundle.model_path(model).open("rb") as file:
            while part := file.read(PART_BYTES):
                yield part


class Incoming:
    """A bundle that arrives.

    Args:
        chunks: the body, in parts of any size.

    Every method raises:
        BundleError: it is not a bundle's body, or ends early.
        SlowUploadError: nothing has arrived for `IDLE_S`.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""

    async def manifest(self) -> tuple[bytes, Manifest]:
        """The text of the manifest, and what it says.

        Raises:
            SlowUploadError: also where it takes longer than `BASE_S`, so that nobody holds up other deploys by it.
            TooLargeError: it is too large.
        """
        try:
            with fail_after(BASE_S):
                length = int.from_bytes(await self._exactly(LENGTH_BYTES), "big")
                if length > MAX_MANIFEST_BYTES:
                    raise TooLargeError(f"the manifest is over {MAX_MANIFEST_BYTES:,} bytes, or the body is no bundle")
                text = await self._exactly(length)
        except TimeoutError:
            raise SlowUploadError("the bundle arrives too slowly: send it over a faster link") from None
        manifest = parse_manifest(Path(MANIFEST), text)
        if size_of(manifest) > MAX_BUNDLE_BYTES:
            raise TooLargeError(f"the bundle is over {MAX_BUNDLE_BYTES:,} bytes")
        return text, manifest

    async def store(self, folder: Path, text: bytes, manifest: Manifest) -> None:
        """Write the files that the manifest names, and the manifest itself, into an empty folder.

        Raises:
            BundleError: also where the manifest names a path outside the folder, or the body is longer than it says.
            SlowUploadError: also where the whole bundle takes too long.
            DeployError: it cannot be written.
        """
        try:
            with fail_after(BASE_S + size_of(manifest) / SLOWEST_BYTES_PER_S):
                for model in files_of(manifest):
                    await self._store(place_of(folder, model), model.bytes)
                if self._buffer or await self._next():
                    raise BundleError("the body is longer than its manifest says: send a bundle with `edvit deploy`")
                await to_thread.run_sync(_write_manifest, folder / MANIFEST, text)
        except TimeoutError:
            raise SlowUploadError("the bundle arrives too slowly: send it over a faster link") from None
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise BundleError(
                "the manifest names one path as two files, or as a file and a folder: build it again"
            ) from None
        except OSError as error:
            raise DeployError(f"the gateway cannot store the new bundle ({error.strerror})") from None

    async def _store(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        async with await open_file(path, "xb") as file:
            while size:
                part = self._buffer[:size] or (await self._some())[:size]
                self._buffer = self._buffer[len(part) :]
                await file.write(part)
                size -= len(part)
            await file.flush()
            await to_thread.run_sync(os.fsync, file.wrapped.fileno())

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._next() or _cut()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    async def _some(self) -> bytes:
        self._buffer = await self._next() or _cut()
        return self._buffer

    async def _next(self) -> bytes:
        """The next bytes that arrive; none at the end of the body."""
        try:
            with fail_after(IDLE_S):
                async for chunk in self._chunks:
                    if chunk:
                        return chunk
        except TimeoutError:
            raise SlowUploadError(f"nothing of the bundle has arrived for {IDLE_S:g} s") from None
        except ClientDisconnect:
            raise BundleError("the connection closed before the end of the bundle") from None
        return b""


def _cut() -> bytes:
    raise BundleError("the body ends before the bundle does: send one with `edvit deploy`")


def _write_manifest(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
