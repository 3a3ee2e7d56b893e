"""The keys folder of a gateway: the fleet's authority, the gateway's own certificate, and who is a member."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from edvit.errors import ConfigError
from edvit.runtime.keys import certificates
from edvit.runtime.keys.files import PRIVATE, PUBLIC, check_private, locked, read, write
from edvit.runtime.wire.mutual_tls import MutualTls, access_control

NO_AUTHORITY = "run `edvit keys init` on the gateway's machine"


@dataclass(frozen=True)
class Member:
    """The newest certificate of a device."""

    name: str
    subject: str
    """The certificate's common name, which no other certificate has."""
    expires: str
    """ISO 8601, UTC."""
    revoked: bool = False

    def is_valid(self, now: datetime) -> bool:
        return not self.revoked and now < datetime.fromisoformat(self.expires)


@dataclass(frozen=True)
class Issued:
    """A new certificate for a device."""

    member: Member
    certificates: bytes
    """PEM: the device's certificate, then the authority's."""
    fingerprint: str
    """The sha256 of the device's public key, hex."""


def make_authority(folder: Path, hosts: Sequence[str], now: datetime) -> bool:
    """Make the authority and the gateway's certificate; of an authority that is there, the gateway's alone.

    Args:
        hosts: names and addresses that clients and devices reach the gateway by.

    Returns:
        Whether the authority is new.

    Raises:
        ConfigError: the folder cannot be written, holds a damaged authority, or a host is no host.
    """
    new = not (folder / "ca.key").exists()
    key = certificates.make_key() if new else _authority_key(folder)
    certificate = certificates.make_authority(key, now) if new else _authority(folder)
    own = certificates.make_key()
    gateway = certificates.make_gateway(own, certificate, key, hosts, now)
    if new:
        write(folder / "ca.crt", certificates.certificate_pem(certificate), PUBLIC)
        write(folder / "ca.key", certificates.key_pem(key), PRIVATE)
    write(folder / "gateway.key", certificates.key_pem(own), PRIVATE)
    write(folder / "gateway.crt", certificates.certificate_pem(gateway), PUBLIC)
    return new


def issue(folder: Path, request: bytes, now: datetime, days: int = certificates.DEVICE_DAYS) -> Issued:
    """Sign a device's request. An earlier certificate of the same name is no member any more.

    Args:
        request: PEM, as `edvit keys request` writes it.
        days: how long the certificate is good for.

    Raises:
        ConfigError: there is no authority here, or the request is not one that a device may make.
    """
    authority, key = _authority(folder), _authority_key(folder)
    name, public_key = certificates.read_request(request)
    certificate = certificates.make_device(name, public_key, key, now, days)
    expires = certificate.not_valid_after_utc.isoformat()
    member = Member(name, certificates.subject_of(certificate), expires)
    with _members(folder) as known:
        known[name] = member
    pem = certificates.certificate_pem(certificate) + certificates.certificate_pem(authority)
    return Issued(member, pem, certificates.fingerprint(public_key))


def revoke(folder: Path, name: str) -> None:
    """Take a device out of the fleet, from the gateway's next start on. Raises ConfigError if it is no member."""
    with _members(folder) as known:
        if name not in known:
            raise ConfigError(f"{name}: no such device here; `edvit keys list` shows them")
        known[name] = Member(**{**asdict(known[name]), "revoked": True})


def members(folder: Path) -> tuple[Member, ...]:
    """Every device that has been issued a certificate, revoked ones too. Raises ConfigError for a damaged list."""
    path = folder / "devices.json"
    if not path.exists():
        return ()
    try:
        return tuple(Member(**values) for values in json.loads(read(path, NO_AUTHORITY)))
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: damaged; restore it, or remove it and issue every certificate again") from None


def gateway_tls(folder: Path, fleet: str, now: datetime) -> MutualTls:
    """What the gateway of a fleet needs: its certificate, and rules for the devices that are members now.

    Raises:
        ConfigError: there is no gateway's key here, or others may read it.
    """
    read(folder / "gateway.crt", NO_AUTHORITY)
    check_private(folder / "gateway.key")
    subjects = {member.name: member.subject for member in members(folder) if member.is_valid(now)}
    return MutualTls(folder / "ca.crt", folder / "gateway.crt", folder / "gateway.key", access_control(fleet, subjects))


def gateway_hosts(folder: Path) -> tuple[str, ...]:
    """The names and addresses that the gateway's certificate is good for."""
    (certificate,) = certificates.read_certificates(read(folder / "gateway.crt", NO_AUTHORITY))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def authority_expires(folder: Path) -> datetime | None:
    """When the authority and the gateway's certificate expire; None where there is no authority."""
    return _authority(folder).not_valid_after_utc if (folder / "ca.crt").exists() else None


def _authority(folder: Path) -> x509.Certificate:
    (certificate,) = certificates.read_certificates(read(folder / "ca.crt", NO_AUTHORITY))
    return certificate


def _authority_key(folder: Path) -> certificates.Key:
    path = folder / "ca.key"
    data = read(path, NO_AUTHORITY)
    check_private(path)
    return certificates.read_key(data)


@contextlib.contextmanager
def _members(folder: Path) -> Iterator[dict[str, Member]]:
    """The members by name, to be changed in the block and then written."""
    with locked(folder):
        known = {member.name: member for member in members(folder)}
        yield known
        data = json.dumps([asdict(member) for member in known.values()], indent=1)
        write(folder / "devices.json", data.encode(), PUBLIC)
