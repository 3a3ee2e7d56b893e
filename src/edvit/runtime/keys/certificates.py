"""X.509 certificates of a fleet: its authority's, its gateway's and its devices'. Nothing here touches a file.

Every key is an elliptic-curve key on P-256. A device's certificate is good for a client alone and the gateway's for a
server alone, so that neither can stand in for the other.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edvit.errors import ConfigError
from edvit.validation import NAME_PATTERN

AUTHORITY_SUBJECT = "edvit authority"
GATEWAY_SUBJECT = "edvit gateway"
"""No device can have these names: a device's name has no space."""

AUTHORITY_DAYS = 3650
DEVICE_DAYS = 730
"""Two years: a device that is lost and forgotten does not stay a member for ever."""

SKEW = timedelta(days=1)
"""A certificate is good from a day before it was made, as the clock of a device may be behind."""

NAME_PART = 47
"""Characters of a device's name in its subject, which has room for 64: a space and 16 digits follow."""

UNREADABLE = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion)
"""What cryptography raises of keys, requests and certificates that are damaged, or of a kind that it does not know."""

Key = ec.EllipticCurvePrivateKey


def make_key() -> Key:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as unencrypted PKCS #8 in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> Key:
    """The key that `key_pem` wrote. Raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except UNREADABLE:
        key = None
    if not isinstance(key, Key):
        raise ConfigError("a private key is damaged: make it again")
    return key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file, in their order. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE:
        raise ConfigError("that is no certificate: give the file that `edvit keys issue` wrote") from None


def subject_of(certificate: x509.Certificate) -> str:
    """The common name, which access-control rules go by. Raises ConfigError where there is not one such name."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except UNREADABLE:
        names = []
    if len(names) != 1:
        raise ConfigError("that certificate names no owner: give one that `edvit keys issue` wrote")
    return str(names[0].value)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """The sha256 of a public key, hex, so that people can compare what they sent with what arrived."""
    data = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def fingerprint_of(certificate: x509.Certificate) -> str:
    """The same for the key of a certificate. Raises ConfigError if the key is of another kind than ours."""
    try:
        key = certificate.public_key()
    except UNREADABLE:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("that certificate has a key of another kind than `edvit keys request` makes")
    return fingerprint(key)


# --- requests ----------------------------------------------------------------------------------------------


def make_request(name: str, key: Key) -> bytes:
    """A device's request for a certificate, PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_named(name)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The device's name and public key; whatever else a request asks for is not read.

    Raises:
        ConfigError: it is no request, its signature is wrong, or its name or key is not one that a device may have.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = request.public_key()
        sound = request.is_signature_valid
    except UNREADABLE:
        raise ConfigError("that is no request: give the file that `edvit keys request` wrote") from None
    name = str(names[0].value) if len(names) == 1 else ""
    if not sound or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("the request is not signed with a key of the kind that `edvit keys request` makes")
    check_name(name)
    return name, key


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` can be a device's, as in fleet.yaml."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise ConfigError(f"{name!r} is no name: use letters, digits, '.', '_' and '-', at most 63")


# --- certificates ------------------------------------------------------------------------------------------


def make_authority(key: Key, now: datetime) -> x509.Certificate:
    """The authority's own certificate."""
    builder = _builder(AUTHORITY_SUBJECT, key.public_key(), key, now=now, days=AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(authority=True), critical=True).sign(key, hashes.SHA256())


def make_gateway(
    key: Key, authority: x509.Certificate, authority_key: Key, hosts: Sequence[str], now: datetime
) -> x509.Certificate:
    """The gateway's certificate, as long valid as the authority's.

    Args:
        hosts: names and addresses that clients reach the gateway by.

    Raises:
        ConfigError: a host is neither a name nor an address.
    """
    days = (authority.not_valid_after_utc - now).days
    builder = _builder(GATEWAY_SUBJECT, key.public_key(), authority_key, now=now, days=days)
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    return _leaf(builder.add_extension(names, critical=False), ExtendedKeyUsageOID.SERVER_AUTH, authority_key)


def make_device(
    name: str, key: ec.EllipticCurvePublicKey, authority_key: Key, now: datetime, days: int
) -> x509.Certificate:
    """A device's certificate. Its subject is used once: rules that name it admit this certificate and no other."""
    serial = x509.random_serial_number()
    subject = f"{name[:NAME_PART]} {serial & (2**64 - 1):016x}"
    builder = _builder(subject, key, authority_key, now=now, days=days, serial=serial)
    return _leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH, authority_key)


def _builder(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    authority_key: Key,
    *,
    now: datetime,
    days: int,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_named(subject))
        .issuer_name(_named(AUTHORITY_SUBJECT))
        .public_key(key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )


def _leaf(builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier, authority_key: Key) -> x509.Certificate:
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return builder.sign(authority_key, hashes.SHA256())


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host) is None:
        raise ConfigError(f"--host {host!r}: give a name or an address that clients reach the gateway by")
    return x509.DNSName(host)
