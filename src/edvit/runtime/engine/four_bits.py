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
    halves = [_to_nibbles(matrix.codes - LEAST_CODE) for matrix in matrices]
    halves += [_to_nibbles(matrix.multipliers - 1) for matrix in matrices]
    packed_codes = packer.compress(b"".join(halves)) + packer.flush()
    body = _SIZES.pack(len(matrices), graph.tell(), len(packed_graph), len(packed_codes))
    body += b"".join(_MATRIX.pack(place.offset, place.inputs, place.outputs) for place in places)
    body += packed_graph + packed_codes
    return _HEAD.pack(MAGIC, VERSION, hashlib.sha256(body).digest()) + body


def unpack(container: bytes, into: BinaryIO) -> None:
    """Write the int8 ONNX file that a container holds.

    What is allocated follows from sizes that were checked against the container's own: at most `MAX_CODES_RATIO` times
    its codes, `MAX_GRAPH_RATIO` times its graph, and the largest matrix.

    Raises:
        ModelError: the container is damaged, or of a later version.
    """
    places, graph, codes = _parsed(container)
    multipliers = sum(place.code_bytes for place in places)
    start = code = 0
    for place in places:
        into.write(graph[start : place.offset])
        start = place.offset
        of_codes = codes[code : code + place.code_bytes]
        of_multipliers = codes[multipliers : multipliers + place.multiplier_bytes]
        code, multipliers = code + place.code_bytes, multipliers + place.multiplier_bytes
        matrix = PackedMatrix(
            _from_nibbles(of_codes, place.inputs, place.outputs).view(np.int8) + np.int8(LEAST_CODE),
            _from_nibbles(of_multipliers, blocks_of(place.inputs), place.outputs) + np.uint8(1),
        )
        into.write(matrix.whole().data)
    into.write(graph[start:])


def _parsed(container: bytes) -> tuple[list[_Place], memoryview, memoryview]:
    """Matrices, the graph without weights, and codes and multipliers, each as long as the sizes say."""
    view = memoryview(container)
    if len(view) < _HEAD.size + _SIZES.size:
        raise _damaged("it is too short")
    magic, version, digest = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise _damaged("it does not begin as one")
    if version != VERSION:
        raise ModelError(
            f"a four-bit model of version {version}, and this edvit reads {VERSION}; install the edvit that built it"
        )
    if hashlib.sha256(view[_HEAD.size :]).digest() != digest:
        raise _damaged("its digest is not that of its content")
    count, graph_bytes, packed_graph, packed_codes = _SIZES.unpack_from(view, _HEAD.size)
    table = _HEAD.size + _SIZES.size
    body = table + count * _MATRIX.size
    if len(view) != body + packed_graph + packed_codes:
        raise _damaged("its sections do not fill it")
    places = [_Place(*_MATRIX.unpack_from(view, table + index * _MATRIX.size)) for index in range(count)]
    _check_places(places, graph_bytes)
    codes_bytes = sum(place.code_bytes + place.multiplier_bytes for place in places)
    if graph_bytes > MAX_GRAPH_RATIO * packed_graph or codes_bytes > MAX_CODES_RATIO * packed_codes:
        raise _damaged("it claims to hold more than its length allows")
    graph = _inflated(view[body : body + packed_graph], graph_bytes)
    return places, graph, _inflated(view[body + packed_graph :], codes_bytes)


def _check_places(places: Sequence[_Place], graph_bytes: int) -> None:
    last = 0
    for place in places:
        if not (last <= place.offset <= graph_bytes and place.inputs and place.outputs):
            raise _damaged("a matrix lies outside it")
        last = place.offset


def _inflated(packed: memoryview, size: int) -> memoryview:
    """A zlib stream that holds `size` bytes and nothing behind them."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed, size + 1)  # 0 would be no limit; a longer stream shows itself by one byte
    except zlib.error:
        raise _damaged("a section cannot be unpacked") from None
    if len(content) != size or not stream.eof or stream.unused_data:
        raise _damaged("a section is of another length than it says")
    return memoryview(content)


def _to_nibbles(values: npt.NDArray[np.integer]) -> bytes:
    """Numbers from 0 to 15, two a byte, the first in the lower half; a last half that is left over is 0."""
    flat = np.zeros(2 * -(-values.size // 2), np.uint8)
    flat[: values.size] = values.ravel()
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _from_nibbles(packed: memoryview, rows: int, columns: int) -> UInt8:
    """The numbers, uint8 `[rows, columns]`."""
    pairs = np.frombuffer(packed, np.uint8)
    flat = np.empty((len(pairs), 2), np.uint8)
    np.bitwise_and(pairs, 15, out=flat[:, 0])
    np.right_shift(pairs, 4, out=flat[:, 1])
    return flat.reshape(-1)[: rows * columns].reshape(rows, columns)


def _damaged(why: str) -> ModelError:
    return ModelError(f"a damaged model in four bits ({why}); copy or build the bundle again")
