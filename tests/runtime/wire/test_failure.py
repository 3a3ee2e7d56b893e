from __future__ import annotations

import json

import pytest

from edvit import errors
from edvit.errors import EdvitError, InfeasibleError, MemoryLimitError, ServiceError, VersionError, WireError
from edvit.runtime.wire.failure import MAX_ERROR_CHARS, decode_error, encode_error


def every_error():
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, EdvitError) and value not in (EdvitError, InfeasibleError)
    ]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_comes_back_as_its_class(kind):
    error = decode_error(encode_error(kind("what is wrong; what to do")))
    assert type(error) is kind
    assert str(error) == "what is wrong; what to do"


def test_an_error_that_needs_more_than_a_message_comes_back_as_a_service_error():
    told = encode_error(InfeasibleError("no", submodel=1, constraint="memory", shortfall=2.0))
    assert type(decode_error(told)) is ServiceError


@pytest.mark.parametrize(
    "error", [ValueError("secret"), KeyError("secret"), EdvitError("secret"), OSError(2, "secret")]
)
def test_the_unknown_travels_without_detail(error):
    data = encode_error(error)
    assert b"secret" not in data
    assert type(error).__name__.encode() not in data.replace(b"internal error", b"")
    assert decode_error(data).code == EdvitError.code


def test_an_error_is_one_short_line():
    told = json.loads(encode_error(MemoryLimitError("a\n  b\n" + "x" * 1000)))
    assert set(told) == {"wire", "code", "message"}
    assert told["message"].startswith(r"a\n  b\nx")
    assert len(told["message"]) == MAX_ERROR_CHARS


@pytest.mark.parametrize("data", [b"", b"nonsense", b'{"code": "x"}', b'{"code": 1, "message": "m"}'])
def test_a_malformed_error_is_an_error_itself(data):
    assert type(decode_error(data)) is WireError


def test_the_bytes_of_an_error_are_those_of_wire_version_2():
    told = encode_error(MemoryLimitError("no room; add memory"))
    assert told == b'{"wire":3,"code":"memory-limit","message":"no room; add memory"}'


def test_an_error_of_another_version_says_so():
    error = decode_error(b'{"wire": 9, "code": "memory-limit", "text": "no room"}')
    assert type(error) is VersionError
    assert "wire version 9" in str(error)


def test_what_a_peer_says_is_escaped():
    error = decode_error(b'{"wire": 3, "code": "memory-limit", "message": "\\u001b[2Jready\\n"}')
    assert str(error) == "\\x1b[2Jready\\n"
