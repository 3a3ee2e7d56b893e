import sys
from pathlib import Path

import pytest

from edvit.cli.serve import (
    announce,
    announcement,
    check_fleet,
    device_commands,
    exposed,
    reachable,
    report_changes,
    state_line,
)
from edvit.errors import ConfigError, FleetTakenError
from edvit.fleet import Device, Fleet
from edvit.runtime.gateway.device_state import DeviceStatus
from tiny_bundle import write_tiny_bundle


def fleet(*names, name="shelf"):
    return Fleet(name=name, devices=tuple(Device.model_validate({"name": device}) for device in names))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Two sub-models on a fleet of three: pi-3 stays free."""
    return write_tiny_bundle(tmp_path_factory.mktemp("cli") / "bundle", fleet=fleet("pi-1", "pi-2", "pi-3"))


def test_a_fleet_that_has_what_the_bundle_needs_passes(bundle):
    check_fleet(fleet("pi-2", "pi-1"), bundle.manifest.plan, Path("f.yaml"))
    check_fleet(fleet("pi-1", "pi-2", "new"), bundle.manifest.plan, Path("f.yaml"))


def test_another_fleet_is_refused(bundle):
    with pytest.raises(ConfigError, match=r"f\.yaml: lacks pi-2, where the bundle has sub-models"):
        check_fleet(fleet("pi-1", "pi-3"), bundle.manifest.plan, Path("f.yaml"))
    with pytest.raises(ConfigError, match=r"f\.yaml: fleet other, but the bundle was built for fleet shelf"):
        check_fleet(fleet("pi-1", "pi-2", name="other"), bundle.manifest.plan, Path("f.yaml"))


def test_one_command_per_device_that_holds_something(bundle):
    assert device_commands(bundle.manifest.plan, "tcp/192.168.1.10:7447") == [
        "  edvit device --name pi-1 --fleet shelf --connect tcp/192.168.1.10:7447",
        "  edvit device --name pi-2 --fleet shelf --connect tcp/192.168.1.10:7447",
    ]


@pytest.mark.parametrize("endpoint", ["tcp/127.0.0.1:7447", "tcp/192.168.1.10:99", "tls/gateway.lan:7447"])
def test_an_endpoint_that_can_be_reached_is_kept(endpoint):
    assert reachable(endpoint) == endpoint


@pytest.mark.parametrize("endpoint", ["tcp/0.0.0.0:7447", "tcp/[::]:7447"])
def test_an_endpoint_of_every_address_names_this_machine(endpoint):
    protocol, _, address = reachable(endpoint).partition("/")
    host, _, port = address.rpartition(":")
    assert (protocol, port) == ("tcp", "7447")
    assert host not in ("", "0.0.0.0", "[::]")


def test_the_announcement_says_what_to_try(bundle):
    text = announcement("http://127.0.0.1:8080", bundle)
    assert "Gateway at http://127.0.0.1:8080 " in text
    assert "edvit predict http://127.0.0.1:8080 IMAGE" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"state": "offline", "submodels": ()}, "gone"),
        ({"problem": "too little memory"}, "too little memory"),
        ({"submodels": (0,)}, "loading"),
        ({}, "ready with sub-model 0, 2"),
        ({"planned": (), "submodels": ()}, "spare"),
        ({"submodels": (0, 1, 2), "copies": (1,)}, "ready with sub-model 0, 2 and a copy of 1"),
        ({"planned": (), "submodels": (1, 3), "copies": (1, 3)}, "ready with a copy of 1, 3"),
        (
            {"name": "pi-9", "planned": (), "submodels": (), "in_fleet": False},
            "not a device of this bundle (it has pi-1, pi-2)",
        ),
        ({"state": "offline", "in_fleet": False}, "gone"),
    ],
)
def test_state_line(changes, line):
    values = {
        "name": "pi-1",
        "alive": True,
        "planned": (0, 2),
        "submodels": (0, 2),
        "memory_bytes": 1,
        "memory_limit_bytes": None,
        "host": None,
        "pid": None,
        "problem": None,
    }
    assert state_line(DeviceStatus(**{**values, **changes}), ["pi-1", "pi-2"]) == line


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["serve", "BUNDLE", "--local", "--port", "0"], "fastapi"),
        (["serve", "BUNDLE", "--local", "--port", "0"], "uvicorn"),
        (["predict", "http://127.0.0.1:9", "x.png"], "httpx"),
        (["evaluate", "http://127.0.0.1:9", "--data", "digits"], "httpx"),
    ],
)
def test_a_missing_extra_is_named(edvit, bundle, monkeypatch, command, module):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    for loaded in ("edvit.runtime.http.app", "edvit.runtime.deploy.deploys"):  # what imports it, or what does
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    code, out, err = edvit(*[bundle.path if word == "BUNDLE" else word for word in command])
    assert (code, out) == (2, "")
    assert err == 'edvit: this command needs the serve extra: pip install "edvit[serve]"\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unknown-below", "0.5", "--unknown-rate", "0.05"], "--unknown-below and --unknown-rate: give one of them"),
        (["--unknown-below", "60"], 'Invalid value "60.0" for --unknown-below. Must be < 1.'),
        (["--unknown-rate", "0.05"], "the bundle was built by an edvit that did not calibrate: build it again"),
    ],
)
def test_what_may_be_unknown_is_one_thing_that_the_bundle_knows(edvit, bundle, options, message):
    assert edvit("serve", bundle.path, "--local", "--port", "0", *options) == (2, "", f"edvit: {message}\n")


def test_a_gateway_of_a_fleet_that_is_taken_ends():
    class Refused:
        replicas = 1

        def check_lease(self):
            raise FleetTakenError("the fleet is served by the gateway on pc-1")

    with pytest.raises(FleetTakenError, match="pc-1"):
        report_changes(Refused)


def test_a_port_of_metrics_that_others_reach_wants_keys_as_the_api_does():
    assert exposed("127.0.0.1", None, "0.0.0.0") == ["--metrics-host 0.0.0.0"]
    assert exposed("0.0.0.0", None, "0.0.0.0") == ["--host 0.0.0.0", "--metrics-host 0.0.0.0"]
    assert exposed("127.0.0.1", None) == exposed("127.0.0.1", None, "::1") == []


def test_metrics_do_not_go_on_a_network_without_keys(edvit, bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, _, err = edvit(
        "serve", bundle.path, "--local", "--port", "0", "--metrics-port", "0", "--metrics-host", "0.0.0.0"
    )
    assert code == 2
    assert err.startswith("edvit: --metrics-host 0.0.0.0 needs keys: run `edvit keys init` first")


def test_an_address_of_metrics_without_their_port_is_refused(edvit, bundle):
    code, _, err = edvit("serve", bundle.path, "--local", "--metrics", "--metrics-host", "0.0.0.0")
    assert (code, err) == (2, "edvit: --metrics-host is the address of --metrics-port: give that as well\n")


def test_where_metrics_are_is_said(bundle, capsys):
    announce("http://127.0.0.1:8080", bundle, "http://127.0.0.1:9108")
    assert capsys.readouterr().out.splitlines()[-1] == "Metrics at http://127.0.0.1:9108/metrics"
    announce("http://127.0.0.1:8080", bundle)
    assert "Metrics" not in capsys.readouterr().out
