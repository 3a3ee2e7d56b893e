"""The keys folder of a device: a private key that never leaves it, and the certificate that the gateway gave it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from edvit.errors import ConfigError
from edvit.runtime.keys import certificates
from edvit.runtime.keys.files import PRIVATE, PUBLIC, read, write


def home(folder: Path, name: str) -> Path:
    """Where a device's files are: several devices may share a keys folder, and the gateway's files are beside them."""
    return folder / "device" / name


def request(folder: Path, name: str) -> tuple[bytes, str]:
    """Make a new private key, to be used once its certificate is here.

    Returns:
        The request for a certificate, PEM, and the sha256 of the public key, hex.

    Raises:
        ConfigError: the name is none, or the folder cannot be written.
    """
    certificates.check_name(name)
    key = certificates.make_key()
    write(home(folder, name) / "next.key", certificates.key_pem(key), PRIVATE)
    return certificates.make_request(name, key), certificates.fingerprint(key.public_key())


def accept(folder: Path, pem: bytes) -> tuple[str, datetime]:
    """Take what the gateway answered to a request: its certificate becomes the device's.

    Args:
        pem: the device's certificate, then the authority's.

    Returns:
        The device's name, and when its certificate expires.

    Raises:
        ConfigError: it answers no request of this folder, or is of another authority than this device knows.
    """
    found = certificates.read_certificates(pem)
    if len(found) != 2:
        raise ConfigError("a device's certificate and its authority's are expected: give what `keys issue` wrote")
    certificate, authority = found
    try:
        certificate.verify_directly_issued_by(authority)
    except certificates.UNREADABLE:
        raise ConfigError("the certificate is not of the authority that is beside it: issue it again") from None
    place, key = _requested(folder, certificates.fingerprint_of(certificate))
    data = certificates.certificate_pem(authority)
    if (place / "ca.crt").exists() and read(place / "ca.crt", "") != data:
        raise ConfigError(
            f"{place}: this device belongs to another authority; remove that folder to let it join a new one"
        )
    write(place / "ca.crt", data, PUBLIC)
    write(place / "device.crt", certificates.certificate_pem(certificate), PUBLIC)
    key.replace(place / "device.key")
    return place.name, certificate.not_valid_after_utc


def memberships(folder: Path) -> list[tuple[str, datetime]]:
    """The devices of this folder that have a certificate, and when each expires."""
    return [
        (path.parent.name, certificates.read_certificates(read(path, ""))[0].not_valid_after_utc)
        for path in sorted((folder / "device").glob("*/device.crt"))
    ]


def _requested(folder: Path, fingerprint: str) -> tuple[Path, Path]:
    """The device's folder and its private key that waits for this certificate."""
    for path in sorted((folder / "device").glob("*/next.key")):
        if certificates.fingerprint(certificates.read_key(path.read_bytes()).public_key()) == fingerprint:
            return path.parent, path
    raise ConfigError(f"{folder}: no request here waits for this certificate; run `edvit keys request NAME` again")
