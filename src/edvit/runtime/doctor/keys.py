"""The certificates in a keys folder: whether they are good, for how long, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from edvit.errors import ConfigError, EdvitError
from edvit.runtime.doctor.check import Check, bad, good, warning

SOON_DAYS = 30

NO_LIBRARY = 'pip install "edvit[keys]"'


def check_keys(folder: Path, name: str | None, now: datetime) -> list[Check]:
    """One line for the device's certificate and one for the gateway's, where they are.

    Args:
        folder: the keys folder.
        name: the device; None for every device of the folder.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        advice = f"{NO_LIBRARY}, and look again"
        return [warning("keys", f"{folder} cannot be looked into without the library cryptography", advice)]
    homes = [folder / "device" / name] if name is not None else sorted((folder / "device").glob("*"))
    checks = [check for home in homes if home.is_dir() for check in _device(home, now)]
    if (folder / "gateway.crt").exists():
        checks.append(_gateway(folder, now))
    if not checks:
        who = f"device {name}" if name is not None else "anybody"
        advice = f"where the gateway is on a network: edvit keys request {name or 'NAME'}"
        return [warning("keys", f"{folder} has no certificate for {who}", advice)]
    return checks


def _device(home: Path, now: datetime) -> Iterator[Check]:
    from edvit.runtime.keys import certificates
    from edvit.runtime.wire.mutual_tls import device_tls

    title, again = f"keys of {home.name}", f"run `edvit keys request {home.name}` again, and have it issued"
    try:
        tls = device_tls(home, home.name)
        found = certificates.read_certificates(tls.certificate.read_bytes())
        authorities = certificates.read_certificates(tls.authority.read_bytes())
        key = certificates.read_key(tls.key.read_bytes())
        if not found or not authorities:
            raise ConfigError(f"{home}: a file without a certificate")
        certificate, authority = found[0], authorities[0]
        same_key = certificates.fingerprint_of(certificate) == certificates.fingerprint(key.public_key())
        owner = certificates.subject_of(certificate).rpartition(" ")[0]
    except (EdvitError, OSError) as error:
        yield bad(title, str(error), again)
        return
    try:
        certificate.verify_directly_issued_by(authority)
    except certificates.UNREADABLE:
        yield bad(title, "the certificate is not of the authority beside it", again)
        return
    if owner != home.name[: certificates.NAME_PART]:
        yield bad(title, f"the certificate is that of device {owner}", again)
    elif not same_key:
        yield bad(title, "the private key is another one's than the certificate's", again)
    else:
        yield _lasting(title, certificate.not_valid_before_utc, certificate.not_valid_after_utc, now, again)


def _gateway(folder: Path, now: datetime) -> Check:
    from edvit.runtime.keys import authority, certificates
    from edvit.runtime.keys.files import check_private

    title, again = "keys of the gateway", "run `edvit keys init` again"
    try:
        hosts = authority.gateway_hosts(folder)
        check_private(folder / "gateway.key")
        own = certificates.read_certificates((folder / "gateway.crt").read_bytes())[0]
    except (EdvitError, OSError) as error:
        return bad(title, str(error), again)
    check = _lasting(title, own.not_valid_before_utc, own.not_valid_after_utc, now, again)
    return Check(check.name, check.state, f"{check.says}; for {', '.join(hosts)}", check.advice)


def _lasting(title: str, since: datetime, until: datetime, now: datetime, again: str) -> Check:
    days = (until - now).days
    if now < since:
        return bad(title, f"good only from {since:%Y-%m-%d} on", "set the clock: sudo timedatectl set-ntp true")
    if now >= until:
        return bad(title, f"expired {until:%Y-%m-%d}", again)
    says = f"good for {days} days, until {until:%Y-%m-%d}"
    return warning(title, says, again + " before then") if days < SOON_DAYS else good(title, says)
