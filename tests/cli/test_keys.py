"""`edvit keys`, and what `edvit serve` and `edvit device` do with and without them."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from edvit.cli.device import device_keys
from edvit.cli.serve import device_commands, exposed, keys_folder, lacking_keys
from edvit.errors import ConfigError
from edvit.runtime.keys.tokens import TokenList
from edvit.runtime.wire.mutual_tls import MutualTls
from tiny_bundle import write_tiny_bundle


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nobody's own keys folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "edvit" / "keys"


@pytest.fixture
def pipe(edvit, monkeypatch):
    """Runs a command with text on its standard input; its standard output."""

    def run(*words, given=""):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given.encode())))
        code, out, _ = edvit(*words)
        assert code == 0
        return out

    return run


def join(pipe, name):
    return pipe("keys", "accept", given=pipe("keys", "issue", given=pipe("keys", "request", name)))


def test_a_fleet_gets_its_keys_by_three_commands_a_device(pipe, home):
    pipe("keys", "init", "--host", "192.168.1.10")
    assert join(pipe, "pi-1").startswith("pi-1: a member until ")
    token = pipe("keys", "token", "me", "--scope", "predict,watch").strip()
    assert TokenList(home).find(token).scopes == ("predict", "watch")
    found = json.loads(pipe("keys", "list", "--json"))
    assert [(line["kind"], line["name"]) for line in found] == [
        ("authority", "and gateway"),
        ("member", "pi-1"),
        ("this device", "pi-1"),
        ("token", "me"),
    ]
    assert pipe("keys", "list").count("good until") == 3
    pipe("keys", "revoke", "pi-1")
    pipe("keys", "revoke", "--token", "me")
    assert "revoked" in pipe("keys", "list")
    assert TokenList(home).find(token) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["request", "../x"], "is no name"),
        (["token", "a b", "--scope", "watch"], "is no name"),
        (["token", "me", "--scope", "root"], "among predict, watch, operate"),
        (["issue", "missing.csr"], "cannot be read"),
        (["revoke", "pi-1"], "edvit keys init"),
        (["init", "--host", "a b"], "--host"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(edvit, words, message):
    code, out, err = edvit("keys", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("host", "listen", "found"),
    [
        ("127.0.0.1", "tcp/127.0.0.1:1", []),
        ("0.0.0.0", "tcp/127.0.0.1:1", ["--host 0.0.0.0"]),
        ("::1", "tcp/0.0.0.0:7447", ["--listen tcp/0.0.0.0:7447"]),
        ("gateway.local", None, ["--host gateway.local"]),
        ("localhost", None, []),
        ("localhost", "tls/127.0.0.1:1", ["--listen tls/127.0.0.1:1"]),
    ],
)
def test_what_others_can_reach_is_found(host, listen, found):
    assert exposed(host, listen) == found


def test_a_network_is_listened_on_with_keys_or_a_word_of_consent(pipe, home):
    network = ["--host 0.0.0.0"]
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 needs keys: run `edvit keys init` .* --insecure"):
        keys_folder(None, False, network)
    assert keys_folder(None, True, network) is None
    assert keys_folder(None, False, []) is None
    with pytest.raises(ConfigError, match="give one of them"):
        keys_folder(home, True, network)
    pipe("keys", "init")
    assert keys_folder(None, False, network) == home
    assert keys_folder(None, False, []) is None
    assert keys_folder(None, True, network) is None


def test_a_device_goes_on_a_network_with_keys_or_a_word_of_consent(pipe, home):
    own, network = ["tcp/127.0.0.1:1"], ["tcp/192.0.2.1:7447"]
    assert device_keys("pi-1", None, False, own, []) is None
    for connect, listen in ((network, []), ([], []), (own, network)):
        with pytest.raises(ConfigError, match=r"device pi-1 needs keys: .*--insecure"):
            device_keys("pi-1", None, False, connect, listen)
        assert device_keys("pi-1", None, True, connect, listen) is None
    with pytest.raises(ConfigError, match="give one of them"):
        device_keys("pi-1", home, True, network, [])
    with pytest.raises(ConfigError, match=r"no such file; run `edvit keys request pi-1`"):
        device_keys("pi-1", home, False, own, [])
    pipe("keys", "init")
    join(pipe, "pi-1")
    assert isinstance(device_keys("pi-1", None, False, network, []), MutualTls)
    assert device_keys("pi-1", None, False, own, []) is None


def test_serve_and_device_refuse_a_network_without_keys(edvit, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    for words in (
        ["serve", bundle.path],
        ["serve", bundle.path, "--local", "--host", "0.0.0.0"],
        ["serve", bundle.path, "--listen", "tcp/127.0.0.1:1", "--host", "::"],
        ["device", "--name", "pi-1"],
        ["device", "--name", "pi-1", "--connect", "tcp/192.0.2.1:7447"],
    ):
        code, out, err = edvit(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--insecure" in err


def test_the_commands_for_devices_say_what_they_consent_to(tmp_path):
    plan = write_tiny_bundle(tmp_path / "bundle").manifest.plan
    assert all(line.endswith(" --insecure") for line in device_commands(plan, "tcp/0.0.0.0:7447", True))
    assert not any("--insecure" in line for line in device_commands(plan, "tls/0.0.0.0:7447"))


def test_what_is_lacking_is_said(pipe, home, tmp_path):
    plan = write_tiny_bundle(tmp_path / "bundle", submodels=2).manifest.plan
    pipe("keys", "init")
    join(pipe, "dev-1")
    lines = lacking_keys(home, plan, "tls/192.0.2.77:7447")
    assert [("dev-2" in line, "192.0.2.77" in line, "token" in line) for line in lines] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    join(pipe, "dev-2")
    pipe("keys", "token", "me", "--scope", "predict")
    assert lacking_keys(home, plan, "tls/127.0.0.1:7447") == []


def test_a_missing_library_is_named(edvit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    code, out, err = edvit("keys", "list")
    assert (code, out) == (2, "")
    assert err == 'edvit: this command needs the keys extra: pip install "edvit[keys]"\n'
