"""`edvit keys`: the certificates of a fleet, and the tokens of its HTTP API."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from edvit.cli import HOW, Json, PositiveInt
from edvit.errors import ConfigError, MissingExtraError

keys = App(name="keys", help="Make the keys that keep strangers out of a fleet.", default_parameter=HOW)

Folder = Annotated[Path | None, Parameter(name="--keys", help="Keys folder; default: ~/.config/edvit/keys.")]
MAX_FILE_BYTES = 100_000
"""Requests and certificates have about a thousand."""


@keys.command
def init(
    *,
    host: Annotated[
        tuple[str, ...],
        Parameter(
            help="Name or address that clients and devices reach the gateway by; may be given again. Default: this "
            "machine's name, its address and localhost."
        ),
    ] = (),
    folder: Folder = None,
) -> None:
    """On the gateway's machine: make the fleet's authority and the gateway's certificate.

    Run again, it keeps the authority and makes the gateway a new certificate.
    """
    from edvit.runtime.keys.authority import gateway_hosts, make_authority

    place = _folder(folder)
    new = make_authority(place, [*host, *local_hosts()], _now())
    print(f"{place}: {'a new authority' if new else 'the authority that was here'}, and the gateway's certificate")
    print(f"It is good for {', '.join(gateway_hosts(place))}.")
    if not new:
        print("Start the gateway again for it to use it.")


@keys.command
def request(
    name: Annotated[str, Parameter(help="Name of this device in the fleet.")],
    /,
    *,
    folder: Folder = None,
) -> None:
    """On a device: make its private key, which never leaves it, and print a request for the gateway."""
    from edvit.runtime.keys.membership import request as make_request

    pem, fingerprint = make_request(_folder(folder), name)
    print(pem.decode(), end="", flush=True)
    print(f"{name}: fingerprint {fingerprint}", file=sys.stderr)


@keys.command
def issue(
    file: Annotated[Path | None, Parameter(help="Request of a device; default: standard input.")] = None,
    /,
    *,
    days: Annotated[PositiveInt, Parameter(help="Days until the certificate expires.")] = 730,
    folder: Folder = None,
) -> None:
    """On the gateway's machine: make a device a member, and print a certificate for it.

    An earlier certificate of the device ceases to be good. The gateway has to be started again.
    """
    from edvit.runtime.keys.authority import issue as issue_certificate

    issued = issue_certificate(_folder(folder), _take(file), _now(), days)
    name, until = issued.member.name, issued.member.expires[:10]
    print(issued.certificates.decode(), end="", flush=True)
    print(f"{name}: fingerprint {issued.fingerprint}, a member until {until}", file=sys.stderr)
    print("Start the gateway again for it to let the device in.", file=sys.stderr)


@keys.command
def accept(
    file: Annotated[Path | None, Parameter(help="Certificate from the gateway; default: standard input.")] = None,
    /,
    *,
    folder: Folder = None,
) -> None:
    """On a device: take the certificate that the gateway gave it."""
    from edvit.runtime.keys.membership import accept as accept_certificate

    name, expires = accept_certificate(_folder(folder), _take(file))
    print(f"{name}: a member until {expires:%Y-%m-%d}")


@keys.command
def token(
    name: Annotated[str, Parameter(help="Who it is for: a name of your choice.")],
    /,
    *,
    scope: Annotated[str, Parameter(help="What it may do: predict, watch, operate, with commas between.")],
    folder: Folder = None,
) -> None:
    """On the gateway's machine: print a new token for the HTTP API, once. An earlier one of that name ceases."""
    from edvit.runtime.keys.certificates import check_name
    from edvit.runtime.keys.tokens import add_token

    check_name(name)
    print(add_token(_folder(folder), name, [part.strip() for part in scope.split(",") if part.strip()], _now()))


@keys.command
def revoke(
    name: Annotated[str, Parameter(help="Name of a device, or with --token of a token.")],
    /,
    *,
    token: Annotated[bool, Parameter(help="It is a token: it opens nothing from now on.")] = False,
    folder: Folder = None,
) -> None:
    """On the gateway's machine: take a device out of the fleet, or a token out of use."""
    from edvit.runtime.keys.authority import revoke as revoke_device
    from edvit.runtime.keys.tokens import remove_token

    if token:
        remove_token(_folder(folder), name)
        print(f"{name}: its token opens nothing any more")
    else:
        revoke_device(_folder(folder), name)
        print(f"{name}: no member any more. Start the gateway again for it to shut the device out.")


@keys.command(name="list")
def show(*, as_json: Annotated[Json, Parameter(help="Print JSON.")] = False, folder: Folder = None) -> None:
    """Show the certificates and tokens of this machine, and until when they are good."""
    found = listing(_folder(folder), _now())
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for line in found:
        print(f"{line['kind']:12} {line['name']:20} {line['state']:24} {', '.join(line.get('scopes', ()))}".rstrip())


def listing(folder: Path, now: datetime) -> list[dict[str, Any]]:
    """One entry for each certificate and token: `kind`, `name`, `state`, and of a token its `scopes`."""
    from edvit.runtime.keys.authority import authority_expires, members
    from edvit.runtime.keys.membership import memberships
    from edvit.runtime.keys.tokens import tokens

    lines: list[dict[str, Any]] = []
    expires = authority_expires(folder)
    if expires is not None:
        lines.append({"kind": "authority", "name": "and gateway", "state": _state(expires, now)})
    for member in members(folder):
        state = "revoked" if member.revoked else _state(datetime.fromisoformat(member.expires), now)
        lines.append({"kind": "member", "name": member.name, "state": state})
    for name, until in memberships(folder):
        lines.append({"kind": "this device", "name": name, "state": _state(until, now)})
    for known in tokens(folder):
        lines.append({"kind": "token", "name": known.name, "state": f"made {known.made[:10]}", "scopes": known.scopes})
    return lines


def local_hosts() -> Sequence[str]:
    """The names and addresses of this machine, as far as it knows them."""
    from edvit.cli.serve import reachable

    name = socket.gethostname()
    address = reachable("tls/0.0.0.0:1").partition("/")[2].rpartition(":")[0]
    return list(dict.fromkeys([name, f"{name.partition('.')[0]}.local", address, "localhost", "127.0.0.1", "::1"]))


def _state(expires: datetime, now: datetime) -> str:
    return f"{'expired' if expires <= now else 'good until'} {expires:%Y-%m-%d}"


def _folder(folder: Path | None) -> Path:
    """The keys folder; asked first by every command, so that a missing library is said in one line."""
    from edvit.runtime.keys.files import default_folder

    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingExtraError('this command needs the keys extra: pip install "edvit[keys]"') from None
    return folder or default_folder()


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _take(file: Path | None) -> bytes:
    if file is None:
        return sys.stdin.buffer.read(MAX_FILE_BYTES)
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
