"""The container of a sub-model in four bits: its int8 ONNX file, packed. docs/bundle.md describes the layout.

Each int8 weight is a code of four bits times its block's multiplier, both small whole numbers, so the device rebuilds
the int8 file to the last byte and runs that.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edvit.errors import ModelError

MAGIC = b"EDVIT-Q4"
VERSION = 1
BLOCK = 32
"""Inputs that share a multiplier."""
LEAST_CODE, MOST_CODE = -8, 7
MOST_MULTIPLIER = 16
"""Multipliers are 1 to 16: a product with a code lies between -128 and 112."""
MAX_GRAPH_RATIO = 64
"""How many times as long as it is packed a graph may be."""
MAX_CODES_RATIO = 8
"""Likewise of codes and multipliers: a Huffman code, of which each byte takes one bit at least."""
PIECE = 1 << 16
"""Bytes of a container that are read at a time."""

_HEAD = struct.Struct("<8sI32s")
_SIZES = struct.Struct("<IIII")
_MATRIX = struct.Struct("<III")

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of weights as codes and multipliers.

    Attributes:
        codes: int8 `[inputs, outputs]`, from `LEAST_CODE` to `MOST_CODE`.
        multipliers: uint8 `[blocks, outputs]`, from 1 to `MOST_MULTIPLIER`; a block is `BLOCK` inputs, the last one
            may be shorter.
    """

    codes: Int8
    multipliers: UInt8

    def whole(self) -> Int8:
        """The int8 weights, `[inputs, outputs]`."""
        repeated = np.repeat(self.multipliers.astype(np.int8), BLOCK, axis=0)
        # Only 16 times a code reaches -128, and no product is outside int8.
        product: Int8 = repeated[: len(self.codes)] * self.codes
        return product


@dataclass(frozen=True)
class _Place:
    """A matrix in a container: `offset` is where its bytes belong in the graph without weights."""

    offset: int
    inputs: int
    outputs: int

    @property
    def code_bytes(self) -> int:
        return -(-self.inputs * self.outputs // 2)

    @property
    def multiplier_bytes(self) -> int:
        return -(-blocks_of(self.inputs) * self.outputs // 2)


def blocks_of(inputs: int) -> int:
    """How many blocks there are."""
    return -(-inputs // BLOCK)


def is_container(head: bytes) -> bool:
    """Whether a file that begins so is a container."""
    return head.startswith(MAGIC)


def pack(onnx: bytes, matrices: Sequence[PackedMatrix]) -> bytes:
    """The container of an int8 ONNX file.

    Args:
        onnx: the file's content.
        matrices: whose int8 weights it holds, in the order in which they stand in it.

    Raises:
        ValueError: the file does not hold them so.
    """
    graph, places, start, removed = io.BytesIO(), [], 0, 0
    for matrix in matrices:
        weights = matrix.whole().tobytes()
        found = onnx.find(weights, start)
        if found < 0:
            raise ValueError("the file does not hold these weights in this order")
        graph.write(onnx[start:found])
        places.append(_Place(found - removed, *matrix.codes.shape))
        start, removed = found + len(weights), removed + len(weights)
    graph.write(onnx[start:])
    packed_graph = zlib.compress(graph.getvalue(), 9)
    # The most usual of Huffman's codes, without a search for repeats: there are none.
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    halves = [_to_nibbles(matrix.multipliers - 1) for matrix in matrices]
    halves += [_to_nibbles(matrix.codes - LEAST_CODE) for matrix in matrices]
    packed_codes = packer.compress(b"".join(halves)) + packer.flush()
    body = _SIZES.pack(len(matrices), graph.tell(), len(packed_graph), len(packed_codes))
    body += b"".join(_MATRIX.pack(place.offset, place.inputs, place.outputs) for place in places)
    body += packed_graph + packed_codes
    return _HEAD.pack(MAGIC, VERSION, hashlib.sha256(body).digest()) + body


def unpack(container: BinaryIO, into: BinaryIO) -> None:
    """Write the int8 ONNX file that a container holds.

    Both are gone through in pieces: what is allocated at a time is the graph without weights, the multipliers and one
    matrix, whose sizes were checked against the container's own length (`MAX_GRAPH_RATIO`, `MAX_CODES_RATIO`).

    Args:
        container: can be sought in.

    Raises:
        ModelError: the container is damaged, or of a later version.
    """
    sizes = _checked(container)
    graph = _Stream(container, sizes.packed_graph).whole(sizes.graph)
    codes = _Stream(container, sizes.packed_codes)
    multipliers = memoryview(codes.read(sum(place.multiplier_bytes for place in sizes.places)))
    start = 0
    for place in sizes.places:
        into.write(graph[start : place.offset])
        start = place.offset
        matrix = PackedMatrix(
            _from_nibbles(codes.read(place.code_bytes), place.inputs, place.outputs).view(np.int8)
            + np.int8(LEAST_CODE),
            _from_nibbles(multipliers, blocks_of(place.inputs), place.outputs) + np.uint8(1),
        )
        multipliers = multipliers[place.multiplier_bytes :]
        into.write(matrix.whole().data)
    into.write(graph[start:])
    codes.end()


@dataclass(frozen=True)
class _Sizes:
    """The head of a container: its matrices, and the lengths of the graph and of both sections as they are packed."""

    places: list[_Place]
    graph: int
    packed_graph: int
    packed_codes: int


def _checked(container: BinaryIO) -> _Sizes:
    """Check a container's digest and sizes; what is read next is the graph."""
    length = container.seek(0, io.SEEK_END)
    container.seek(0)
    table = _HEAD.size + _SIZES.size
    if length < table:
        raise _damaged("it is too short")
    magic, version, digest = _HEAD.unpack(container.read(_HEAD.size))
    if magic != MAGIC:
        raise _damaged("it does not begin as one")
    if version != VERSION:
        raise ModelError(
            f"a four-bit model of version {version}, and this edvit reads {VERSION}; install the edvit that built it"
        )
    found = hashlib.sha256()
    while piece := container.read(PIECE):
        found.update(piece)
    if found.digest() != digest:
        raise _damaged("its digest is not that of its content")
    container.seek(_HEAD.size)
    count, graph, packed_graph, packed_codes = _SIZES.unpack(container.read(_SIZES.size))
    if length != table + count * _MATRIX.size + packed_graph + packed_codes:
        raise _damaged("its sections do not fill it")
    places = [_Place(*_MATRIX.unpack(container.read(_MATRIX.size))) for _ in range(count)]
    _check_places(places, graph)
    codes = sum(place.code_bytes + place.multiplier_bytes for place in places)
    if graph > MAX_GRAPH_RATIO * packed_graph or codes > MAX_CODES_RATIO * packed_codes:
        raise _damaged("it claims to hold more than its length allows")
    return _Sizes(places, graph, packed_graph, packed_codes)


def _check_places(places: Sequence[_Place], graph: int) -> None:
    last = 0
    for place in places:
        if not (last <= place.offset <= graph and place.inputs and place.outputs):
            raise _damaged("a matrix lies outside it")
        last = place.offset


class _Stream:
    """A zlib stream in the next `length` bytes of a file; nothing is unpacked before it is asked for."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._left = file, length
        self._inflater = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        content = bytearray()
        while len(content) < count:
            content += self._more(count - len(content))
        return bytes(content)

    def whole(self, size: int) -> bytes:
        """All of it, which has to be of this size."""
        content = self.read(size)
        self.end()
        return content

    def end(self) -> None:
        """Check that nothing is left."""
        while not self._inflater.eof:
            if self._more(1):
                raise _damaged("a section is longer than it says")
        if self._left or self._inflater.unused_data:
            raise _damaged("there is something behind a section")

    def _more(self, most: int) -> bytes:
        """At least some progress: up to `most` bytes, or none where only input was taken."""
        if self._inflater.eof:  # zlib may keep a tail behind its end, which it never takes
            raise _damaged("a section is shorter than it says")
        packed = self._inflater.unconsumed_tail
        if not packed:
            packed = self._file.read(min(PIECE, self._left))
            self._left -= len(packed)
        try:
            content = self._inflater.decompress(packed, most)
        except zlib.error:
            raise _damaged("a section cannot be unpacked") from None
        if not content and not packed:
            raise _damaged("a section is shorter than it says")
        return content


def _to_nibbles(values: npt.NDArray[np.integer]) -> bytes:
    """Numbers from 0 to 15, two a byte, the first in the lower half; a last half that is left over is 0."""
    flat = np.zeros(2 * -(-values.size // 2), np.uint8)
    flat[: values.size] = values.ravel()
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _from_nibbles(packed: bytes | memoryview, rows: int, columns: int) -> UInt8:
    """The numbers that `packed` begins with, uint8 `[rows, columns]`."""
    pairs = np.frombuffer(packed, np.uint8, -(-rows * columns // 2))
    flat = np.empty((len(pairs), 2), np.uint8)
    np.bitwise_and(pairs, 15, out=flat[:, 0])
    np.right_shift(pairs, 4, out=flat[:, 1])
    return flat.reshape(-1)[: rows * columns].reshape(rows, columns)


def _damaged(why: str) -> ModelError:
    return ModelError(f"a damaged model in four bits ({why}); copy or build the bundle again")
