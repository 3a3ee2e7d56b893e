from __future__ import annotations

import hashlib
import random

import pytest

from edvit.errors import ConfigError, DigestError, ServiceError, UnavailableError, WireError
from edvit.runtime.device import model_cache
from edvit.runtime.device.model_cache import ModelCache, fetch_part
from edvit.runtime.wire.header import encode
from edvit.runtime.wire.messages import BLOB_CHUNK_BYTES, BlobReply
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import BLOB
from edvit.runtime.wire.transport import Reply
from memory_transport import MemoryNetwork, MemoryTransport

DATA = random.Random(0).randbytes(2 * BLOB_CHUNK_BYTES + 123)  # its ends are not the "x" that tests put there
DIGEST = hashlib.sha256(DATA).hexdigest()


class Source:
    def __init__(self, data=DATA):
        self.data = data
        self.parts = []

    def __call__(self, offset, length):
        self.parts.append((offset, length))
        return self.data[offset : offset + length]


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_in_parts_once(tmp_path):
    cache, source = ModelCache(tmp_path / "cache"), Source()
    path = cache.get(DIGEST, len(DATA), source).path
    assert path.read_bytes() == DATA
    assert source.parts == [
        (0, BLOB_CHUNK_BYTES),
        (BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES),
        (2 * BLOB_CHUNK_BYTES, 123),
    ]
    assert ModelCache(tmp_path / "cache").get(DIGEST, len(DATA), source).path == path
    assert len(source.parts) == 3
    assert left_in(tmp_path / "cache") == [f"{DIGEST}.onnx"]


@pytest.mark.parametrize(
    "damage", [b"x" + DATA[1:], DATA[:-1], b"", DATA + b"x"], ids=["byte", "short", "empty", "long"]
)
def test_a_damaged_file_is_fetched_again(tmp_path, damage):
    cache, source = ModelCache(tmp_path), Source()
    path = cache.get(DIGEST, len(DATA), Source()).path
    path.write_bytes(damage)
    assert cache.get(DIGEST, len(DATA), source).path.read_bytes() == DATA
    assert len(source.parts) == 3


def test_bytes_with_another_digest_are_not_kept(tmp_path):
    with pytest.raises(DigestError, match="another digest"):
        ModelCache(tmp_path).get(DIGEST, len(DATA), Source(DATA[:-1] + b"x"))
    assert left_in(tmp_path) == []


def test_a_fetch_that_breaks_off_leaves_nothing(tmp_path):
    def broken(offset, length):
        if offset:
            raise UnavailableError("gone")
        return DATA[:length]

    with pytest.raises(UnavailableError):
        ModelCache(tmp_path).get(DIGEST, len(DATA), broken)
    assert left_in(tmp_path) == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--cache"):
        ModelCache(tmp_path / "file" / "cache")


def test_a_folder_that_is_gone(tmp_path):
    cache = ModelCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    with pytest.raises(ServiceError, match="cannot store"):
        cache.get(DIGEST, len(DATA), Source())


@pytest.mark.parametrize(
    "packet",
    [
        encode(BlobReply(offset=0, length=4), b"abcd"),
        encode(BlobReply(offset=1, length=5), b"abcde"),
        Packet(encode(BlobReply(offset=0, length=5), b"abcde").header, b"abcdef"),
        Packet(encode(BlobReply(offset=0, length=6), b"abcdef").header, b"abcdef"),
        Packet(b"nonsense", b"abcde"),
    ],
    ids=["short", "elsewhere", "lying", "long", "nonsense"],
)
def test_parts_that_are_not_what_was_asked_for_are_refused(packet):
    network = MemoryNetwork()
    asked = []

    def serve(request):
        asked.append(request.key)
        yield Reply(request.key, packet)

    MemoryTransport(network).serve(BLOB.key(fleet="f", sha256="*"), serve)
    with pytest.raises(WireError):
        fetch_part(MemoryTransport(network), "f", DIGEST, 0, 5)
    assert len(asked) == model_cache.CHUNK_ATTEMPTS
