"""Certificates as `edvit keys` makes them, and what can be wrong with them."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone

import pytest

from edvit.runtime.doctor.keys import check_keys
from edvit.runtime.keys import authority
from keyed_fleet import join

NOW = datetime.now(timezone.utc)


@pytest.fixture
def keys(tmp_path):
    """A gateway's keys folder with device pi-1's in it, too."""
    authority.make_authority(tmp_path, ["192.0.2.1"], NOW)
    join(tmp_path, tmp_path, "pi-1", now=NOW, days=100)
    return tmp_path


def states(keys, name=None, now=NOW):
    return [(check.name, check.state) for check in check_keys(keys, name, now)]


def only(keys, now=NOW):
    (check,) = check_keys(keys, "pi-1", now)[:1]
    return check


def test_good_keys(keys):
    device, gateway = check_keys(keys, None, NOW)
    assert (device.name, device.state) == ("keys of pi-1", "good")
    assert "good for 99 days" in device.says or "good for 100 days" in device.says
    assert (gateway.name, gateway.state) == ("keys of the gateway", "good")
    assert "for 192.0.2.1" in gateway.says


@pytest.mark.parametrize(
    ("days", "state", "says"),
    [(0, "good", "good for"), (80, "warning", "good for"), (101, "bad", "expired"), (-2, "bad", "good only from")],
)
def test_how_long_a_certificate_is_good(keys, days, state, says):
    check = only(keys, NOW + timedelta(days=days))
    assert check.state == state
    assert says in check.says


def test_a_certificate_of_another_device(keys):
    (keys / "device" / "pi-1").rename(keys / "device" / "pi-2")
    (check,) = check_keys(keys, "pi-2", NOW)[:1]
    assert (check.state, check.says) == ("bad", "the certificate is that of device pi-1")


def test_a_key_of_another_certificate(keys):
    join(keys, keys, "pi-2")
    shutil.copy(keys / "device" / "pi-2" / "device.key", keys / "device" / "pi-1" / "device.key")
    assert "another one's" in only(keys).says


def test_an_authority_of_another_fleet(keys, tmp_path):
    authority.make_authority(tmp_path / "other", ["192.0.2.1"], NOW)
    shutil.copy(tmp_path / "other" / "ca.crt", keys / "device" / "pi-1" / "ca.crt")
    assert "not of the authority" in only(keys).says


def test_a_key_that_others_may_read(keys):
    (keys / "device" / "pi-1" / "device.key").chmod(0o644)
    assert "chmod 600" in only(keys).says
    (keys / "gateway.key").chmod(0o640)
    assert states(keys)[1] == ("keys of the gateway", "bad")


@pytest.mark.parametrize("name", ["device.crt", "device.key", "ca.crt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "nonsense"])
def test_damaged_files(keys, name, damage):
    path = keys / "device" / "pi-1" / name
    path.unlink() if damage == "missing" else path.write_bytes(b"" if damage == "empty" else b"\x00nonsense")
    assert only(keys).state == "bad"


def test_no_keys_are_a_warning(tmp_path):
    assert states(tmp_path) == [("keys", "warning")]
    assert "edvit keys request pi-7" in check_keys(tmp_path, "pi-7", NOW)[0].advice
