from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edvit.errors import VersionError, WireError
from edvit.runtime.wire import messages
from edvit.runtime.wire.header import MAX_HEADER_BYTES, decode, encode
from edvit.runtime.wire.messages import (
    MAX_BATCH,
    BlobReply,
    BlobRequest,
    DeviceInfo,
    InferReply,
    InferRequest,
    InfoRequest,
    LoadRequest,
    RefuseRequest,
    SubModelSpec,
    to_array,
    to_payload,
)
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES, Packet

DIGEST = "0" * 64
INSTANCE = "f" * 16
SPEC = SubModelSpec(id=0, sha256=DIGEST, bytes=10, memory_bytes=20, channels=3, image_size=8, feature_dim=4)
BY = {"gateway": INSTANCE, "gateway_host": "h"}
ASKED = {"request": INSTANCE, "bundle": DIGEST, "deadline_s": 2.0}
EXAMPLES = [
    (InfoRequest(), b""),
    (RefuseRequest(instance=INSTANCE), b""),
    (LoadRequest(**BY, instance=INSTANCE, bundle=DIGEST, submodels=(SPEC,), memory_limit_bytes=5, deadline_s=1.5), b""),
    (DeviceInfo(device="pi-1", instance=INSTANCE, version="0", host="h", pid=1, threads=1), b""),
    (InferRequest(**ASKED, shape=(1, 3, 2, 2)), bytes(12)),
    (
        InferRequest(
            request=INSTANCE, shape=(2, 3, 2, 2), encoding="webp", encoded_bytes=7, bundle=DIGEST, deadline_s=2.0
        ),
        bytes(7),
    ),
    (InferReply(request=INSTANCE, shape=(1, 4), submodel=0, device="pi-1", seconds=0.1), bytes(16)),
    (BlobRequest(offset=0, length=3), b""),
    (BlobReply(offset=0, length=3), b"abc"),
]


def infer_request(**changes):
    header = {
        "wire": 3,
        "request": INSTANCE,
        "dtype": "uint8",
        "shape": [1, 3, 2, 2],
        "bundle": DIGEST,
        "deadline_s": 2.0,
        **changes,
    }
    return json.dumps({name: value for name, value in header.items() if value is not None}).encode()


@pytest.mark.parametrize(("header", "payload"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_messages_survive_the_wire(header, payload):
    assert decode(type(header), encode(header, payload)) == header


@pytest.mark.parametrize(("header", "payload"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_payload_of_another_size_is_refused(header, payload):
    with pytest.raises(ValueError, match="payload"):
        encode(header, payload + b"x")
    packet = Packet(encode(header, payload).header, payload + b"x")
    with pytest.raises(WireError, match="payload has"):
        decode(type(header), packet)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5)))
def test_features_survive_bit_for_bit(feature):
    header = InferReply(request=INSTANCE, shape=feature.shape, submodel=0, device="d", seconds=0.0)
    packet = encode(header, to_payload(feature))
    array = to_array(decode(InferReply, packet), packet.payload)
    assert array.tobytes() == feature.tobytes()
    assert array.shape == feature.shape


def test_payloads_are_little_endian_and_in_c_order():
    values = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert to_payload(values) == np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes()


def test_a_dtype_that_the_wire_does_not_carry_is_a_defect():
    with pytest.raises(KeyError):
        to_payload(np.zeros(3, np.float64))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"dtype": "object"},
        {"shape": [1, 3, 2]},
        {"shape": [1, 3, 2, -2]},
        {"shape": [0, 3, 2, 2]},
        {"shape": ["1", 3, 2, 2]},
        {"shape": [1.0, 3, 2, 2]},
        {"shape": None},
        {"bundle": "0" * 63},
        {"bundle": "../" + "0" * 61},
        {"deadline_s": 0},
        {"deadline_s": -1.0},
        {"deadline_s": "2"},
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
        {"encoding": "png"},
        {"encoding": "webp"},
        {"encoded_bytes": 12},
        {"encoding": "webp", "encoded_bytes": 0},
        {"encoding": "webp", "encoded_bytes": 12, "shape": [10**9, 3, 2, 2]},
        {"shape": [MAX_BATCH + 1, 3, 2, 2]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_malformed_headers_are_refused(changes):
    with pytest.raises(WireError, match="malformed header"):
        decode(InferRequest, Packet(infer_request(**changes), bytes(12)))


@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"[" * 10_000, b'"text"', b"{}"])
def test_what_is_no_header_is_refused(header):
    with pytest.raises(WireError, match="malformed header"):
        decode(InferRequest, Packet(header, bytes(12)))


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_arbitrary_bytes_never_do_more_than_be_refused(header, payload):
    for kind in (InferRequest, LoadRequest, BlobReply, DeviceInfo):
        with pytest.raises(WireError):
            decode(kind, Packet(header, payload))


@given(st.integers(0, len(infer_request()) - 1), st.integers(0, 255))
def test_one_changed_byte_is_refused_or_read_as_it_stands(where, value):
    data = bytearray(infer_request())
    data[where] = value
    try:
        header = decode(InferRequest, Packet(bytes(data), bytes(12)))
    except WireError:
        return
    assert header.payload_bytes == 12


def test_a_shape_that_would_overflow_is_refused_without_being_allocated():
    header = infer_request(shape=[2**31, 2**31, 2**31, 2**31])
    with pytest.raises(WireError, match="at most"):
        decode(InferRequest, Packet(header, b""))


def test_sizes_have_a_maximum():
    with pytest.raises(WireError, match="header of"):
        decode(InferRequest, Packet(b" " * (MAX_HEADER_BYTES + 1), b""))
    with pytest.raises(WireError, match="at most"):
        decode(InferRequest, Packet(infer_request(shape=[1, 1, 1, MAX_PAYLOAD_BYTES + 1]), b""))
    with pytest.raises(WireError, match="at most 11 "):
        decode(InferRequest, Packet(infer_request(), bytes(12)), max_payload=11)


def test_a_submodel_named_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        LoadRequest(**BY, instance=INSTANCE, bundle=DIGEST, submodels=(SPEC, SPEC), deadline_s=1.0)


def test_headers_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        SPEC.id = 3


def test_no_header_accepts_unknown_fields_or_changes():
    kinds = [
        value for value in vars(messages).values() if isinstance(value, type) and issubclass(value, messages.Header)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.model_config["extra"] == "forbid"
        assert kind.model_config["frozen"]
        assert kind.model_config["strict"]


@pytest.mark.parametrize("header", [b'{"wire": 1}', b'{"wire": 9, "more": "fields"}'])
def test_another_version_is_told_as_such(header):
    with pytest.raises(VersionError, match=r"wire version \d, and this program 3: install the same version of edvit"):
        decode(InfoRequest, Packet(header))


def test_text_from_the_network_is_escaped():
    text = "\x1b[2J\nready\u202e\x07"
    info = DeviceInfo(device="pi-1", instance=INSTANCE, version="0", host=text, pid=1, threads=1)
    assert info.host == "\\x1b[2J\\nready\\u202e\\x07"
    assert decode(DeviceInfo, encode(info)) == info


def test_a_size_that_is_square_is_one_number_and_another_is_two():
    values = SPEC.model_dump(mode="json")
    assert values["image_size"] == 8
    wide = SubModelSpec.model_validate_json(json.dumps({**values, "image_size": [96, 160]}))
    assert wide.image_size == (96, 160)
    assert json.loads(wide.model_dump_json())["image_size"] == [96, 160]


@pytest.mark.parametrize("wrong", ["8", "96x160", 0, [96], [96, 0], [96, 160, 3], 9.0, True])
def test_a_size_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="image_size"):
        SubModelSpec.model_validate_json(json.dumps({**SPEC.model_dump(mode="json"), "image_size": wrong}))
