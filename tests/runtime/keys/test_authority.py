"""The gateway's and the devices' keys folders, and the certificates that go between them."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edvit.errors import ConfigError
from edvit.runtime.keys import authority, certificates, membership
from edvit.runtime.wire.mutual_tls import device_tls
from keyed_fleet import NOW, join


@pytest.fixture
def keys(tmp_path):
    authority.make_authority(tmp_path / "keys", ["gateway.local", "192.168.1.10", "::1"], NOW)
    return tmp_path / "keys"


def load(path):
    (certificate,) = certificates.read_certificates(path.read_bytes())
    return certificate


def test_private_keys_are_their_owners_alone_and_differ(keys, tmp_path):
    join(keys, tmp_path / "device", "pi-1")
    private = [*tmp_path.rglob("*.key")]
    assert {path.name for path in private} == {"ca.key", "gateway.key", "device.key"}
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert len({path.read_bytes() for path in private}) == 3
    assert {path.parent.stat().st_mode & 0o777 for path in private} == {0o700}


def test_certificates_are_good_for_one_purpose_each(keys, tmp_path):
    tls = join(keys, tmp_path / "device", "pi-1")
    for path, purpose in (
        (keys / "gateway.crt", ExtendedKeyUsageOID.SERVER_AUTH),
        (tls.certificate, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        extensions = load(path).extensions
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        assert (list(usage.value), usage.critical) == ([purpose], True)
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_another_implementation_agrees(keys, tmp_path):
    tls = join(keys, tmp_path / "device", "pi-1")
    for purpose, path, good in (
        ("sslserver", keys / "gateway.crt", True),
        ("sslclient", keys / "gateway.crt", False),
        ("sslclient", tls.certificate, True),
        ("sslserver", tls.certificate, False),
    ):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", keys / "ca.crt", path]
        assert (subprocess.run(command, capture_output=True).returncode == 0) == good


def test_the_gateway_is_named_by_its_hosts_and_again_with_others_under_the_same_authority(keys):
    before = (keys / "ca.crt").read_bytes()
    assert authority.gateway_hosts(keys) == ("gateway.local", "192.168.1.10", "::1")
    assert not authority.make_authority(keys, ["10.0.0.1"], NOW + timedelta(days=1000))
    assert authority.gateway_hosts(keys) == ("10.0.0.1",)
    assert (keys / "ca.crt").read_bytes() == before
    assert load(keys / "gateway.crt").not_valid_after_utc <= load(keys / "ca.crt").not_valid_after_utc
    with pytest.raises(ConfigError, match="--host 'a b'"):
        authority.make_authority(keys, ["a b"], NOW)


def test_a_subject_is_used_once_and_fits(keys, tmp_path):
    name = "n" * 63
    subjects = set()
    for _ in range(2):
        join(keys, tmp_path / "device", name)
        (member,) = authority.members(keys)
        subjects.add(member.subject)
        assert len(member.subject) <= 64
        assert certificates.subject_of(load(tmp_path / "device" / "device" / name / "device.crt")) == member.subject
    assert len(subjects) == 2


def test_members_are_those_whose_certificate_is_the_newest_and_neither_revoked_nor_expired(keys, tmp_path):
    for name in ("pi-1", "pi-2", "pi-3"):
        join(keys, tmp_path / name, name)
    join(keys, tmp_path / "old", "old", now=NOW - timedelta(days=3), days=1)
    authority.revoke(keys, "pi-2")
    subjects = authority.gateway_tls(keys, "shelf", NOW).access["subjects"]
    assert [subject["id"] for subject in subjects] == ["pi-1", "pi-3"]
    assert [len(subject["cert_common_names"]) for subject in subjects] == [1, 1]
    join(keys, tmp_path / "pi-2", "pi-2")
    assert "pi-2" in [subject["id"] for subject in authority.gateway_tls(keys, "shelf", NOW).access["subjects"]]
    with pytest.raises(ConfigError, match="no such device"):
        authority.revoke(keys, "pi-9")


def request_of(name, key):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def altered(pem):
    """A request whose signature is of another name."""
    der = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
    return x509.load_der_x509_csr(der.replace(b"pi-1", b"pi-2")).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"nonsense",
        request_of("../x", certificates.make_key()),
        request_of("edvit gateway", certificates.make_key()),
        request_of("pi-1\n", certificates.make_key()),
        request_of("pi-1", ec.generate_private_key(ec.SECP384R1())),
        request_of("pi-1", rsa.generate_private_key(65537, 2048)),
        altered(request_of("pi-1", certificates.make_key())),
    ],
    ids=["empty", "nonsense", "path", "the gateway", "newline", "another curve", "rsa", "altered"],
)
def test_requests_that_are_refused(keys, pem):
    with pytest.raises(ConfigError) as refused:
        authority.issue(keys, pem, NOW)
    assert "\n" not in str(refused.value)
    assert authority.members(keys) == ()


def test_without_an_authority_the_message_says_what_to_do(tmp_path):
    for work in (
        lambda: authority.issue(tmp_path, request_of("pi-1", certificates.make_key()), NOW),
        lambda: authority.gateway_tls(tmp_path, "shelf", NOW),
    ):
        with pytest.raises(ConfigError, match="run `edvit keys init`"):
            work()


def test_keys_that_others_may_read_are_refused(keys, tmp_path):
    tls = join(keys, tmp_path / "device", "pi-1")
    for path, use in (
        (keys / "gateway.key", lambda: authority.gateway_tls(keys, "shelf", NOW)),
        (keys / "ca.key", lambda: authority.issue(keys, request_of("a", certificates.make_key()), NOW)),
        (tls.key, lambda: device_tls(tls.key.parent, "pi-1")),
    ):
        path.chmod(0o640)
        with pytest.raises(ConfigError, match="chmod 600"):
            use()


def test_a_device_takes_a_certificate_for_its_own_request_alone(keys, tmp_path):
    pem, fingerprint = membership.request(tmp_path / "one", "pi-1")
    issued = authority.issue(keys, pem, NOW)
    assert issued.fingerprint == fingerprint
    membership.request(tmp_path / "two", "pi-1")
    with pytest.raises(ConfigError, match="no request here waits"):
        membership.accept(tmp_path / "two", issued.certificates)
    for pem in (b"", b"x", (keys / "ca.crt").read_bytes(), issued.certificates * 2):
        with pytest.raises(ConfigError):
            membership.accept(tmp_path / "one", pem)
    assert membership.accept(tmp_path / "one", issued.certificates)[0] == "pi-1"


def test_a_device_keeps_working_until_its_new_certificate_is_there(keys, tmp_path):
    tls = join(keys, tmp_path / "device", "pi-1")
    before = tls.key.read_bytes()
    membership.request(tmp_path / "device", "pi-1")
    assert tls.key.read_bytes() == before


def test_a_device_changes_its_authority_only_when_its_owner_says_so(keys, tmp_path):
    join(keys, tmp_path / "device", "pi-1")
    authority.make_authority(tmp_path / "other", ["h"], NOW)
    with pytest.raises(ConfigError, match="belongs to another authority"):
        join(tmp_path / "other", tmp_path / "device", "pi-1")
