"""The network interfaces of this machine, whether multicast works on them, and whether a gateway can be reached."""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from edvit.errors import EdvitError
from edvit.runtime.doctor.check import Check, bad, good, warning
from edvit.runtime.exposure import is_loopback
from edvit.runtime.wire.mutual_tls import MutualTls
from edvit.runtime.wire.topics import ANY, GATEWAY_ALIVE
from edvit.runtime.wire.zenoh_transport import ZenohTransport, check_endpoint

GROUP = "224.0.0.224"
"""Where Zenoh's peers look for each other."""

ANSWER_S = 3.0
"""How long a connection, a certificate or a gateway's sign of life may take."""

MULTICAST_S = 1.0
LATE_ALERT_S = 0.5
"""A server of TLS 1.3 refuses a certificate only after its client believes that all is well."""

_SIOCGIFADDR = 0x8915
_UP = 0x1


@dataclass(frozen=True)
class Interface:
    """A network interface that is up and has an address of IPv4."""

    name: str
    address: str


def interfaces() -> list[Interface]:
    """Those of this machine; the loopback interface is one of them."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if not _flags(name) & _UP:
                continue
            with contextlib.suppress(OSError):
                asked = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                found.append(Interface(name, socket.inet_ntoa(answer[20:24])))
    return found


def check_interfaces() -> list[Check]:
    """One line for each interface."""
    found = interfaces()
    checks = [_interface(interface) for interface in found]
    if not any(not is_loopback(interface.address) for interface in found):
        advice = "connect this machine to the network of the gateway: nobody else can reach it now"
        checks.append(warning("network", "no interface but the loopback has an address", advice))
    return checks


def multicast_works(address: str) -> bool:
    """Whether what is sent to Zenoh's group on the interface with this address comes back to this machine.

    Whether switches and access points hand it on is not known from that.
    """
    token = secrets.token_bytes(16)
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((GROUP, 0))
            joined = socket.inet_aton(GROUP) + socket.inet_aton(address)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            receiver.settimeout(MULTICAST_S)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sender.sendto(token, (GROUP, receiver.getsockname()[1]))
            return receiver.recv(64) == token
    except OSError:
        return False


def check_gateway(endpoint: str, fleet: str, tls: MutualTls | None) -> list[Check]:
    """Whether a device reaches the gateway at an endpoint, step by step; what comes after a bad step is not tried.

    Args:
        endpoint: `tcp/HOST:PORT` or `tls/HOST:PORT`.
        fleet: the fleet whose gateway it shall be.
        tls: the device's keys; None where the endpoint is not of TLS, or there are none.
    """
    try:
        check_endpoint(endpoint)
    except EdvitError as error:
        return [bad("connect", str(error), "correct --connect")]
    protocol, _, address = endpoint.partition("/")
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    problem = _connects(host, int(port))
    if problem is not None:
        return [bad("connect", f"{endpoint}: {problem[0]}", problem[1])]
    checks = [good("connect", f"{endpoint}: something listens there")]
    if protocol == "tls":
        if tls is None:
            return [*checks, bad("tls", "no keys to show", "run `edvit keys request NAME`, and give --name and --keys")]
        checks.append(_shakes_hands(host, int(port), tls))
        if checks[-1].state == "bad":
            return checks
    return [*checks, _hears(endpoint, fleet, tls)]


def _interface(interface: Interface) -> Check:
    says = f"{interface.address}, multicast "
    if multicast_works(interface.address):
        return good(interface.name, says + "works")
    if is_loopback(interface.address):
        return good(interface.name, says + "does not work, which only matters to devices on this machine")
    return warning(interface.name, says + "does not work", "start devices with --connect")


def _connects(host: str, port: int) -> tuple[str, str] | None:
    """What is wrong, and what to do; None where a TCP connection can be made."""
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except ConnectionRefusedError:
        return "nothing listens there", "start `edvit serve`, or correct the port"
    except socket.gaierror:
        return f"the name {host} is not known", "give the gateway's address in place of its name"
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s", "open the port on the gateway's firewall, or correct the address"
    except OSError as error:
        return f"cannot be reached ({error.strerror})", "look at this machine's address and route"
    return None


def _shakes_hands(host: str, port: int, tls: MutualTls) -> Check:
    """Whether both sides take each other's certificate."""
    try:
        context = ssl.create_default_context(cafile=tls.authority)
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        return bad("tls", f"the keys cannot be read: {error.strerror or error}", "run `edvit keys request` again")
    try:
        with (
            socket.create_connection((host, port), timeout=ANSWER_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as link,
        ):
            version = link.version()
            link.settimeout(LATE_ALERT_S)
            with contextlib.suppress(TimeoutError):
                link.recv(1)
    except ssl.SSLCertVerificationError as error:
        return bad(
            "tls",
            f"the gateway's certificate is refused here: {error.verify_message}",
            "look at the clock; run `edvit keys init --host HOST` there with the address that devices use",
        )
    except OSError as error:
        return bad(
            "tls",
            f"the gateway refuses this certificate, or speaks no TLS ({getattr(error, 'reason', None) or error})",
            "look at `edvit keys list` on both machines",
        )
    return good("tls", f"{version}, and both certificates are taken")


def _hears(endpoint: str, fleet: str, tls: MutualTls | None) -> Check:
    """Whether the gateway of the fleet gives a sign of life, as a device waits for it."""
    heard = threading.Event()

    def on_change(_: str, alive: bool) -> None:
        if alive:
            heard.set()

    try:
        with contextlib.closing(ZenohTransport(connect=[endpoint], scouting=False, tls=tls)) as transport:
            transport.watch(GATEWAY_ALIVE.key(fleet=fleet, instance=ANY), on_change)
            heard.wait(ANSWER_S)
    except EdvitError as error:
        return bad("gateway", str(error), "correct --connect")
    if heard.is_set():
        return good("gateway", f"the gateway of fleet {fleet} is there")
    return bad(
        "gateway",
        f"no gateway of fleet {fleet} answers there within {ANSWER_S:g} s",
        "give the fleet of its bundle by --fleet; with keys, start the gateway again after `edvit keys issue`",
    )


def _flags(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/flags").read_text(), 16)
    except (OSError, ValueError):
        return _UP
