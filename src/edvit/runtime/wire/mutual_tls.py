"""Zenoh over TLS with certificates on both sides, and the rules that keep each device to its own keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit.errors import ConfigError
from edvit.runtime.wire.topics import ALIVE, ANY, BLOB, GATEWAY_ALIVE, INFER, INFO, LOAD, REFUSE

PROTOCOL = "tls"


@dataclass(frozen=True)
class MutualTls:
    """The PEM files of one side of the wire; this module needs no library to read them.

    Attributes:
        authority: the certificate of the fleet's authority.
        certificate: this side's own.
        key: the private key of it.
        access: the gateway's rules, as `access_control` makes them; None on a device.
    """

    authority: Path
    certificate: Path
    key: Path
    access: Mapping[str, Any] | None = None


def device_tls(place: Path, name: str) -> MutualTls:
    """The files of a device, in its folder of a keys folder.

    Raises:
        ConfigError: one is missing, or others may read the private key.
    """
    tls = MutualTls(place / "ca.crt", place / "device.crt", place / "device.key")
    for path in (tls.authority, tls.certificate, tls.key):
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; run `edvit keys request {name}`, and bring back what `edvit keys issue` gives"
            )
    if tls.key.stat().st_mode & 0o077:
        raise ConfigError(f"{tls.key}: other users of this machine may read this private key: chmod 600 {tls.key}")
    return tls


def settings(tls: MutualTls) -> dict[str, Any]:
    """Zenoh's settings, by name, that differ from those without TLS."""
    link = "transport/link/tls"
    common = {
        # Multicast is not protected: whoever answers it first could otherwise offer plain TCP.
        "transport/link/protocols": [PROTOCOL],
        "scouting/gossip/enabled": False,
        "scouting/multicast/autoconnect": {"router": [], "peer": ["router"], "client": ["router"]},
        f"{link}/root_ca_certificate": str(tls.authority),
        f"{link}/enable_mtls": True,
        f"{link}/close_link_on_expiration": True,
    }
    if tls.access is None:
        return common | {
            f"{link}/connect_certificate": str(tls.certificate),
            f"{link}/connect_private_key": str(tls.key),
            # Zenoh trusts the public web's authorities as well: without a look at the name, any web server would do.
            f"{link}/verify_name_on_connect": True,
        }
    return common | {
        # Devices that are linked to a router never reach each other but through it.
        "mode": "router",
        f"{link}/listen_certificate": str(tls.certificate),
        f"{link}/listen_private_key": str(tls.key),
        "access_control": tls.access,
    }


def access_control(fleet: str, members: Mapping[str, str]) -> dict[str, Any]:
    """What passes the gateway to and from each device; everything else is refused.

    A device serves and answers its own keys, announces itself, sees whether there is a gateway, and fetches model
    files: nothing more.

    Args:
        members: the common name of each device's certificate, by the device's name.
    """
    rules: list[dict[str, Any]] = []
    policies = []
    here = [GATEWAY_ALIVE.key(fleet=fleet, instance=ANY)]
    for name in members:
        own = [topic.key(fleet=fleet, device=name) for topic in (INFO, LOAD, REFUSE)]
        own.append(INFER.key(fleet=fleet, submodel=ANY, device=name))
        alive = [ALIVE.key(fleet=fleet, device=name, instance=ANY)]
        files = [BLOB.key(fleet=fleet, sha256=ANY)]
        passes = [
            _rule(f"{name} serves", "ingress", ["declare_queryable", "reply"], own),
            _rule(f"{name} is asked", "egress", ["query"], own),
            _rule(f"{name} is here", "ingress", ["liveliness_token"], alive),
            _rule(f"{name} asks for files", "ingress", ["query"], files),
            _rule(f"{name} gets files", "egress", ["reply", "declare_queryable"], files),
            _rule(
                f"{name} looks for a gateway", "ingress", ["declare_liveliness_subscriber", "liveliness_query"], here
            ),
            _rule(f"{name} sees the gateway", "egress", ["liveliness_token"], here),
        ]
        rules += passes
        policies.append({"rules": [rule["id"] for rule in passes], "subjects": [name]})
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": [{"id": name, "cert_common_names": [subject]} for name, subject in members.items()],
        "policies": policies,
    }


def _rule(name: str, flow: str, messages: list[str], keys: list[str]) -> dict[str, Any]:
    return {"id": name, "flows": [flow], "messages": messages, "permission": "allow", "key_exprs": keys}
