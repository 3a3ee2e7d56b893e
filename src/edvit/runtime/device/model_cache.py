"""Model files by digest on a device: fetched from the gateway in parts, verified, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from edvit.digest import sha256_of
from edvit.errors import DigestError, EdvitError, ServiceError, UnavailableError, WireError
from edvit.runtime.device.cache_folder import CacheFolder, HeldFile
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import BLOB_CHUNK_BYTES, BlobReply, BlobRequest
from edvit.runtime.wire.topics import BLOB
from edvit.runtime.wire.transport import Failure, Transport

CHUNK_DEADLINE_S = 10.0
CHUNK_ATTEMPTS = 3

FetchPart = Callable[[int, int], bytes]
"""`(offset, length)` -> that part of the file."""


def fetch_part(transport: Transport, fleet: str, sha256: str, offset: int, length: int) -> bytes:
    """Ask the gateway for a part of a model file.

    Raises:
        UnavailableError: nobody who answers has it.
        EdvitError: what the gateway answered instead.
    """
    packet = encode(BlobRequest(offset=offset, length=length))
    problem: EdvitError = UnavailableError("no gateway serves this model file; is `edvit serve` still running?")
    for _ in range(CHUNK_ATTEMPTS):
        replies = transport.ask(BLOB.key(fleet=fleet, sha256=sha256), packet, deadline_s=CHUNK_DEADLINE_S, urgent=False)
        for reply in replies:
            if isinstance(reply, Failure):
                problem = reply.error
                continue
            try:
                header = decode(BlobReply, reply.packet, max_payload=length)
            except WireError as error:
                problem = error
                continue
            if (header.offset, header.length) == (offset, length):
                return reply.packet.payload
            problem = WireError("the gateway sent another part of a model file than the device asked for")
    raise problem


class ModelCache:
    """Model files on disk, named by their digest. Several processes may share a folder.

    Args:
        folder, limit_bytes: as for `CacheFolder`.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._folder = CacheFolder(folder, limit_bytes)

    def expect(self, digests: Iterable[str]) -> None:
        """Say which files will be asked for next, so that none of them makes room for another."""
        self._folder.touch(digests)

    def get(self, sha256: str, size: int, fetch: FetchPart) -> HeldFile:
        """The file with this digest: verified if it is here, otherwise fetched and verified.

        It stays in the folder as long as the result is referred to and not released.

        Args:
            sha256: its digest, hex.
            size: its length in bytes.
            fetch: gives a part of it; called in order, only if needed.

        Raises:
            DigestError: what was fetched has another digest; nothing is kept.
            ServiceError: it cannot be stored, or is too large for the limit of the folder.
            EdvitError: whatever `fetch` raises.
        """
        try:
            held = self._folder.hold(sha256)
            if held is not None and held.path.stat().st_size == size and sha256_of(held.path) == sha256:
                return held
            if held is not None:
                held.release()
            return self._download(sha256, size, fetch)
        except OSError as error:
            raise ServiceError(f"the device cannot store a model file: {error.strerror}") from None

    def _download(self, sha256: str, size: int, fetch: FetchPart) -> HeldFile:
        with self._folder.adding(sha256, size) as new:
            digest = hashlib.sha256()
            for offset in range(0, size, BLOB_CHUNK_BYTES):
                data = fetch(offset, min(BLOB_CHUNK_BYTES, size - offset))
                digest.update(data)
                new.write(data)
            if digest.hexdigest() != sha256:
                raise DigestError(f"model {sha256[:12]}… arrived with another digest; the device did not keep it")
            return new.keep(sha256)
