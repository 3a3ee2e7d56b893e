from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.errors import ModelError
from edvit.plan import cost
from edvit.runtime.engine.four_bits import BLOCK, MAGIC, PackedMatrix, blocks_of, is_container, pack, unpack

DIGEST = slice(12, 44)
SIZES = struct.Struct("<IIII")


def matrix(inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    return PackedMatrix(
        rng.integers(-8, 8, (inputs, outputs)).astype(np.int8),
        rng.integers(1, 17, (blocks_of(inputs), outputs)).astype(np.uint8),
    )


def unpacked(container):
    into = io.BytesIO()
    unpack(io.BytesIO(container), into)
    return into.getvalue()


def file_of(matrices, between=b"graph"):
    return between + b"".join(matrix.whole().tobytes() + between for matrix in matrices)


def signed(container):
    """With the digest that its content has now."""
    body = bytes(container[DIGEST.stop :])
    return bytes(container[: DIGEST.start]) + hashlib.sha256(body).digest() + body


@pytest.fixture(scope="module")
def container():
    matrices = [matrix(70, 5), matrix(32, 8, seed=1)]
    return pack(file_of(matrices, between=b"some graph " * 3), matrices)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 9)), max_size=4),
    between=st.binary(max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_unpacked_is_what_was_packed(shapes, between, seed):
    matrices = [matrix(inputs, outputs, seed + number) for number, (inputs, outputs) in enumerate(shapes)]
    content = file_of(matrices, between)
    found = pack(content, matrices)
    assert is_container(found)
    assert unpacked(found) == content


@pytest.mark.parametrize("code", [-8, 7, 0])
def test_matrices_of_one_code_are_exact(code):
    for multiplier in (1, 16):
        same = PackedMatrix(np.full((65, 3), code, np.int8), np.full((3, 3), multiplier, np.uint8))
        assert (same.whole().astype(int) == code * multiplier).all(), "every product fits int8"
        content = file_of([same, same])
        assert unpacked(pack(content, [same, same])) == content


def test_a_block_has_a_multiplier():
    found = PackedMatrix(np.ones((BLOCK + 1, 2), np.int8), np.array([[2, 3], [4, 5]], np.uint8)).whole()
    assert (found[:BLOCK] == [2, 3]).all()
    assert (found[BLOCK:] == [4, 5]).all()


def test_the_plan_counts_the_same_blocks():
    assert cost.FOUR_BIT_BLOCK == BLOCK


def test_weights_that_are_not_in_the_file_are_refused():
    with pytest.raises(ValueError, match="does not hold these weights"):
        pack(b"graph", [matrix(3, 3)])


def test_it_is_half_as_large_as_int8():
    large = matrix(768, 96)
    assert len(pack(file_of([large]), [large])) < 768 * 96 * (4 + 4 / BLOCK) / 8 + 500


def test_an_onnx_file_is_no_container():
    assert not is_container(b"\x08\x0a\x12\x00")


def test_every_truncation_is_one_line(container):
    for length in range(len(container)):
        with pytest.raises(ModelError, match="damaged model in four bits"):
            unpacked(container[:length])
        with pytest.raises(ModelError, match="damaged model in four bits"):
            unpacked(signed(container[: max(length, DIGEST.stop)]))


def test_something_behind_it_is_refused(container):
    for longer in (container + b"\0", signed(container + b"\0")):
        with pytest.raises(ModelError, match="damaged"):
            unpacked(longer)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused(container, data):
    changed = bytearray(container)
    where = data.draw(st.integers(0, len(container) - 1))
    changed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ModelError, match=r"damaged|of version"):
        unpacked(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_forged_container_is_refused_or_unpacked_within_its_bounds(container, data):
    """Its digest fits, so that everything behind it is reached."""
    changed = bytearray(container)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(DIGEST.stop, len(container) - 1))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        assert len(unpacked(signed(changed))) < 64 * len(container)
    except ModelError as error:
        assert "damaged" in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 2**32 - 1), (1, 2**32 - 1), (1, 0), (2, 2**32 - 1), (3, 2**32 - 1), (4, 2**32 - 1), (5, 2**32 - 1), (6, 0)],
)
def test_sizes_that_lie_are_refused_before_anything_is_allocated(container, place, value):
    """Matrices, graph, packed graph, packed codes; offset, inputs and outputs of the first matrix."""
    changed = bytearray(container)
    struct.pack_into("<I", changed, DIGEST.stop + 4 * place, value)
    tracemalloc.start()
    with pytest.raises(ModelError, match="damaged"):
        unpacked(signed(changed))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_graph_that_unpacks_to_more_than_is_allowed_is_refused():
    bomb = zlib.compress(bytes(50_000_000), 9)
    codes = zlib.compress(b"")
    head = MAGIC + struct.pack("<I", 1) + bytes(32)
    with pytest.raises(ModelError, match="claims to hold more"):
        unpacked(signed(head + SIZES.pack(0, 50_000_000, len(bomb), len(codes)) + bomb + codes))
    with pytest.raises(ModelError, match="longer than it says"):
        unpacked(signed(head + SIZES.pack(0, 100, len(bomb), len(codes)) + bomb + codes))


def test_a_later_version_is_named(container):
    changed = bytearray(container)
    struct.pack_into("<I", changed, len(MAGIC), 7)
    with pytest.raises(ModelError, match="of version 7, and this edvit reads 1; install"):
        unpacked(bytes(changed))
