from pathlib import Path

import pytest

from edvit.errors import ConfigError
from edvit.runtime.wire.mutual_tls import MutualTls, access_control, settings
from edvit.runtime.wire.zenoh_transport import ZenohTransport

MEMBERS = {"pi-1": "pi-1 0123", "pi-2": "pi-2 4567"}
FILES = tuple(map(Path, ("ca", "crt", "key")))


def test_what_is_not_allowed_is_denied_and_each_device_has_its_own_name_in_its_rules():
    access = access_control("shelf", MEMBERS)
    assert (access["enabled"], access["default_permission"]) == (True, "deny")
    assert {rule["permission"] for rule in access["rules"]} == {"allow"}
    for rule in access["rules"]:
        name = rule["id"].split()[0]
        for key in rule["key_exprs"]:
            assert name in key.split("/") or key in ("edvit/shelf/blobs/*", "edvit/shelf/gateways/*/alive")
    assert {policy["subjects"][0]: len(policy["rules"]) for policy in access["policies"]} == {"pi-1": 7, "pi-2": 7}


def test_a_device_sees_gateways_and_never_passes_for_one():
    messages = {
        (flow, message)
        for rule in access_control("shelf", MEMBERS)["rules"]
        if "edvit/shelf/gateways/*/alive" in rule["key_exprs"]
        for flow in rule["flows"]
        for message in rule["messages"]
    }
    assert ("ingress", "liveliness_token") not in messages
    assert ("egress", "liveliness_token") in messages


def test_a_device_sends_questions_for_files_alone():
    asks = [
        key
        for rule in access_control("shelf", MEMBERS)["rules"]
        if "query" in rule["messages"] and "ingress" in rule["flows"]
        for key in rule["key_exprs"]
    ]
    assert set(asks) == {"edvit/shelf/blobs/*"}


def test_both_sides_speak_tls_alone_and_show_a_certificate():
    for access in (None, access_control("shelf", MEMBERS)):
        values = settings(MutualTls(*FILES, access))
        assert values["transport/link/protocols"] == ["tls"]
        assert values["transport/link/tls/enable_mtls"] is True
        assert values["transport/link/tls/close_link_on_expiration"] is True
    assert settings(MutualTls(*FILES))["transport/link/tls/verify_name_on_connect"] is True


@pytest.mark.parametrize("endpoint", ["tcp/127.0.0.1:7447", "quic/127.0.0.1:7447"])
def test_an_endpoint_without_tls_is_refused(endpoint):
    with pytest.raises(ConfigError, match="tls/HOST:PORT"):
        ZenohTransport(connect=[endpoint], scouting=False, tls=MutualTls(*FILES))
