"""The gateway serves its bundle's model files in parts, by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from edvit.bundle import Bundle
from edvit.errors import UnavailableError, WireError
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import BlobReply, BlobRequest
from edvit.runtime.wire.topics import ANY, BLOB
from edvit.runtime.wire.transport import Registration, Reply, Request, Transport


def serve_model_files(bundle: Bundle, transport: Transport, folder: Callable[[], Path] | None = None) -> Registration:
    """Serve the file of every sub-model of the bundle, at `edvit/<fleet>/blobs/<sha256>`, until it is closed.

    Args:
        folder: says where the bundle lies now; None where it stays at its path.
    """
    files = {submodel.model.sha256: submodel.model for submodel in bundle.manifest.submodels}

    def part(request: Request) -> Iterator[Reply]:
        asked = decode(BlobRequest, request.packet)
        file = files.get(BLOB.parts(request.key)["sha256"])
        if file is None:
            return  # another gateway may have it
        if asked.offset >= file.bytes:
            raise WireError("a device asked for a part of a model file beyond its end")
        try:
            with ((folder() if folder else bundle.path) / file.file).open("rb") as stream:
                stream.seek(asked.offset)
                data = stream.read(min(asked.length, file.bytes - asked.offset))
        except OSError as error:
            raise UnavailableError(
                f"the gateway cannot read a model file of its bundle ({error.strerror}): restore the bundle's folder"
            ) from None
        if not data:
            raise UnavailableError("a model file of the bundle has changed: restore it, and restart the gateway")
        yield Reply(request.key, encode(BlobReply(offset=asked.offset, length=len(data)), data))

    return transport.serve(BLOB.key(fleet=bundle.manifest.plan.fleet.name, sha256=ANY), part)
