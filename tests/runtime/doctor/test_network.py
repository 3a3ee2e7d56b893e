"""Interfaces, multicast and gateways: real sockets, a real gateway over Zenoh with and without keys."""

from __future__ import annotations

import contextlib
import socket
from datetime import datetime, timedelta, timezone

import pytest

from edvit.runtime.doctor.network import check_gateway, check_interfaces, interfaces, multicast_works
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from free_port import free_endpoint, free_port
from keyed_fleet import keyed_fleet
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("doctor") / "bundle", submodels=1, classes=4)


def states(checks):
    return [(check.name, check.state) for check in checks]


def test_the_loopback_interface_is_found():
    assert ("lo", "127.0.0.1") in [(one.name, one.address) for one in interfaces()]
    assert "lo" in [check.name for check in check_interfaces()]


def test_multicast_is_really_sent_and_received():
    assert not multicast_works("198.51.100.77")  # no address of this machine
    for interface in interfaces():
        assert isinstance(multicast_works(interface.address), bool)


def test_a_gateway_without_keys(bundle):
    endpoint = free_endpoint()
    with (
        contextlib.closing(ZenohTransport(listen=[endpoint], scouting=False)) as transport,
        contextlib.closing(Gateway(bundle, transport, deadline_s=60.0)),
    ):
        assert states(check_gateway(endpoint, "local", None)) == [("connect", "good"), ("gateway", "good")]
        assert states(check_gateway(endpoint, "other", None)) == [("connect", "good"), ("gateway", "bad")]


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("tcp/127.0.0.1:{port}", "nothing listens there"),
        ("127.0.0.1:{port}", "not an endpoint"),
        ("tcp/no-such-host.invalid:1", "no-such-host.invalid"),
    ],
)
def test_what_cannot_be_reached(endpoint, says):
    (check,) = check_gateway(endpoint.format(port=free_port()), "local", None)
    assert check.state == "bad"
    assert says in check.says


def test_something_else_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        checks = check_gateway(f"tcp/127.0.0.1:{server.getsockname()[1]}", "local", None)
    assert states(checks) == [("connect", "good"), ("gateway", "bad")]


def test_a_gateway_with_keys(bundle, tmp_path):
    now = datetime.now(timezone.utc)
    with keyed_fleet(tmp_path, bundle) as fleet, keyed_fleet(tmp_path / "strange") as strange:
        member = fleet.join("dev-1")
        expired = fleet.join("dev-2", now=now - timedelta(days=10), days=1)
        fleet.gateway(fleet.transport())
        late = fleet.join("dev-3")
        shaken = [("connect", "good"), ("tls", "good")]
        assert states(check_gateway(fleet.endpoint, "local", member)) == [*shaken, ("gateway", "good")]
        # It has a certificate, but the gateway has not been started since.
        assert states(check_gateway(fleet.endpoint, "local", late)) == [*shaken, ("gateway", "bad")]
        refused = [("connect", "good"), ("tls", "bad")]
        for tls, says in ((None, "no keys"), (expired, "refuses"), (strange.join("dev-1"), "is refused here")):
            checks = check_gateway(fleet.endpoint, "local", tls)
            assert states(checks) == refused
            assert says in checks[1].says
