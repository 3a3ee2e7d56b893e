from __future__ import annotations

import time

import pytest

from edvit.errors import ConfigError, PortInUseError
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.transport import Replies
from edvit.runtime.wire.zenoh_transport import ZenohTransport, _Query, check_endpoint
from free_port import free_endpoint


@pytest.mark.parametrize("endpoint", ["tcp/127.0.0.1:7447", "tls/gateway.local:1", "tcp/[::1]:65535", "quic/h:0"])
def test_endpoints_that_are_fine(endpoint):
    check_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    ["", "127.0.0.1:7447", "tcp/", "tcp/host", "tcp/host:", "tcp/:7447", "tcp/h:99999", "ftp/h:1", "tcp/h:²"],
)
def test_endpoints_that_are_refused(endpoint):
    with pytest.raises(ConfigError, match=r"endpoint|port"):
        check_endpoint(endpoint)


def test_a_taken_port_is_told_in_one_line():
    endpoint = free_endpoint()
    first = ZenohTransport(listen=[endpoint], scouting=False)
    try:
        with pytest.raises(PortInUseError, match="in use") as refused:
            ZenohTransport(listen=[endpoint], scouting=False)
        assert "\n" not in str(refused.value)
    finally:
        first.close()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="cannot listen"):
        ZenohTransport(listen=["tcp/192.0.2.1:7447"], scouting=False)


def test_a_query_that_zenoh_ends_and_refuses_ends_once():
    ended = []
    replies = Replies(2, time.monotonic() + 60)
    query = _Query("a/b", Packet(b"{}"), replies, lambda: ended.append(1))
    query.end()
    query.end()
    assert ended == [1]
    replies.close()
    assert list(replies) == []
