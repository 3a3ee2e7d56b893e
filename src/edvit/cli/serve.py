"""`edvit serve`: the gateway."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import Parameter

from edvit.cli import Port, PositiveFloat, Share
from edvit.cli.console.copy_lines import CopyLines
from edvit.cli.console.log_options import LogOptions
from edvit.runtime.exposure import is_loopback, wanting_keys
from edvit.runtime.keys.tokens import RATE
from edvit.runtime.logs import event, is_json, write_logs
from edvit.runtime.watching.watching import LOOPBACK, MetricsAt
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.units import counted

if TYPE_CHECKING:
    from edvit.bundle import Bundle, PlanInfo
    from edvit.fleet import Fleet
    from edvit.runtime.gateway.device_state import DeviceStatus
    from edvit.runtime.gateway.gateway import Gateway
    from edvit.runtime.service import Protection

log = logging.getLogger(__name__)

POLL_S = 0.25
NAMED_STRANGERS = 20
"""Devices outside the fleet that are named."""

NETWORK = "{protocol}/0.0.0.0:7447"
"""Where devices connect to unless it is said otherwise."""

STRANGERS = "Everybody on the network can read images, load models and answer for devices."


def serve(
    bundle: Annotated[Path, Parameter(help="Folder that `edvit build` wrote.")],
    /,
    *,
    fleet: Annotated[
        Path | None, Parameter(help="Check that this fleet file has the devices that the bundle was built for.")
    ] = None,
    local: Annotated[bool, Parameter(help="Run every device on this machine, and end them with the gateway.")] = False,
    host: Annotated[str, Parameter(help="Address for HTTP; 0.0.0.0 answers the whole network.")] = "127.0.0.1",
    port: Annotated[Port, Parameter(help="Port for HTTP; 0 takes a free one.")] = 8080,
    listen: Annotated[
        str | None,
        Parameter(
            help="Zenoh endpoint that devices connect to; not with --local. Default: port 7447 of every address, "
            "tls/0.0.0.0:7447 with keys and tcp/0.0.0.0:7447 without."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        Parameter(
            help="Keys folder that `edvit keys init` made: devices need its certificates, clients HTTPS and its "
            "tokens. Default: ~/.config/edvit/keys, where other machines can reach the gateway."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, Parameter(help="Certificate for HTTPS in place of the keys folder's, PEM; with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, Parameter(help="Its private key, PEM.")] = None,
    rate_limit: Annotated[
        str, Parameter(help="Requests that each token may make, such as 100/second or 10/minute.")
    ] = RATE,
    insecure: Annotated[
        bool,
        Parameter(help="Let everybody on the network use the gateway and answer for devices, without keys."),
    ] = False,
    deadline_s: Annotated[
        PositiveFloat | None,
        Parameter(
            help="Seconds within which a request is answered, once its body is here. Default: four times the 99th "
            "percentile of the last answers, from 0.5 to 2.",
        ),
    ] = None,
    strict: Annotated[bool, Parameter(help="Refuse requests that cannot be answered with every sub-model.")] = False,
    replicas: Annotated[
        Literal[1, 2],
        Parameter(
            help="With 2, a second copy of every sub-model on another device, where memory and energy allow; it is "
            "asked where the first one is late or ends."
        ),
    ] = 1,
    unknown_below: Annotated[
        Share | None,
        Parameter(help="Answer `unknown` where the most probable class is less probable than this, 0 to 1."),
    ] = None,
    unknown_rate: Annotated[
        Share | None,
        Parameter(
            help="The same, at the probability below which the answers to so large a share of the validation images "
            "were: 0.01, 0.02, 0.05, 0.1 or 0.2."
        ),
    ] = None,
    image_encoding: Annotated[
        ImageEncoding,
        Parameter(
            help="How images travel to devices: webp is exact and half as large or less, jpeg is smaller and inexact."
        ),
    ] = "raw",
    metrics: Annotated[
        bool, Parameter(help="Show metrics for Prometheus at /metrics; with keys, to tokens with scope watch.")
    ] = False,
    metrics_port: Annotated[
        Port | None, Parameter(help="Show metrics on this port, which shows nothing else; 0 takes a free one.")
    ] = None,
    metrics_host: Annotated[
        str, Parameter(help="Address of that port; 0.0.0.0 answers the whole network, to tokens with scope watch.")
    ] = LOOPBACK,
    logs: LogOptions = LogOptions(),
) -> None:
    """Serve a bundle over HTTP: POST /predict, GET /health, GET /fleet, documentation at /docs."""
    from edvit.bundle import read_bundle
    from edvit.errors import ConfigError
    from edvit.fleet import load_fleet
    from edvit.runtime.deploy.folder import BundleFolder
    from edvit.runtime.local import serve_locally
    from edvit.runtime.rejection import Rejection
    from edvit.runtime.service import serve as serve_fleet
    from edvit.runtime.service import until_signalled
    from edvit.runtime.wire.zenoh_transport import check_endpoint

    write_logs(logs.log_format, logs.log_level)
    rejection = Rejection(unknown_below, unknown_rate)
    if sys.stdout is None or not sys.stdout.isatty():
        os.environ.setdefault("NO_COLOR", "1")  # for Zenoh, which logs who is refused
    if listen is not None:
        check_endpoint(listen)
    if metrics_port is None and metrics_host != LOOPBACK:
        raise ConfigError("--metrics-host is the address of --metrics-port: give that as well")
    metrics_at = MetricsAt(route=metrics, port=metrics_port, host=metrics_host)
    open_to = exposed(host, None if local else listen or NETWORK.format(protocol="tcp"), metrics_host)
    folder = keys_folder(keys, insecure, open_to)
    if folder is None and open_to:
        warn(f"INSECURE: {' and '.join(open_to)} without keys. {STRANGERS}")
    listening = listen or NETWORK.format(protocol="tcp" if folder is None else "tls")
    BundleFolder(bundle).recover()
    verified = read_bundle(bundle)
    if fleet is not None:
        check_fleet(load_fleet(fleet), verified.manifest.plan, fleet)
    plan = verified.manifest.plan
    own = (
        None
        if folder is None
        else protection(folder, plan, network=not local, tls_cert=tls_cert, tls_key=tls_key, rate=rate_limit)
    )
    with until_signalled():
        if local:
            with serve_locally(
                verified,
                host=host,
                port=port,
                deadline_s=deadline_s,
                image_encoding=image_encoding,
                strict=strict,
                replicas=replicas,
                rejection=rejection,
                protection=own,
                metrics=metrics_at,
            ) as service:
                announce(service.url, verified, service.metrics_url)
                report_changes(lambda: service.gateway)
        else:
            with serve_fleet(
                verified,
                host=host,
                port=port,
                strict=strict,
                replicas=replicas,
                rejection=rejection,
                listen=listening,
                deadline_s=deadline_s,
                image_encoding=image_encoding,
                # Who looks for others by multicast links to whoever answers: not from a machine that keeps to itself.
                scouting=own is not None or bool(wanting_keys([listening])),
                protection=own,
                metrics=metrics_at,
            ) as service:
                announce(service.url, verified, service.metrics_url)
                lacking = lacking_keys(folder, plan, listening) if folder is not None else []
                what_to_type(device_commands(plan, listening, insecure), lacking)
                report_changes(lambda: service.gateway)


def exposed(host: str, listen: str | None, metrics_host: str = LOOPBACK) -> list[str]:
    """The options that want keys, as other machines can reach the gateway by them."""
    hosts = {"--host": host, "--metrics-host": metrics_host}
    found = [f"{option} {given}" for option, given in hosts.items() if not is_loopback(given)]
    return found + [f"--listen {endpoint}" for endpoint in wanting_keys([listen] if listen else [])]


def keys_folder(keys: Path | None, insecure: bool, open_to: list[str]) -> Path | None:
    """The keys folder to use; None for none.

    Raises:
        ConfigError: other machines can reach the gateway, and there are no keys and no `--insecure`; or both are given.
    """
    from edvit.errors import ConfigError
    from edvit.runtime.keys.files import default_folder

    if keys is not None and insecure:
        raise ConfigError("--keys and --insecure: give one of them")
    if keys is not None or insecure or not open_to:
        return keys
    if not (default_folder() / "gateway.crt").exists():
        raise ConfigError(
            f"{' and '.join(open_to)} needs keys: run `edvit keys init` first, or accept with --insecure that "
            "everybody on the network may use the gateway and answer for devices"
        )
    return default_folder()


def protection(
    folder: Path,
    plan: PlanInfo,
    *,
    network: bool,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    rate: str = RATE,
) -> Protection:
    """What a keys folder gives to a gateway; `network`: whether devices are on one. Raises ConfigError."""
    from edvit.errors import ConfigError
    from edvit.runtime.http.server import HttpsFiles
    from edvit.runtime.keys.authority import gateway_tls
    from edvit.runtime.keys.tokens import TokenList
    from edvit.runtime.service import Protection

    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key: give both")
    wire = gateway_tls(folder, plan.fleet.name, datetime.now(timezone.utc))
    https = HttpsFiles(tls_cert or wire.certificate, tls_key or wire.key)
    return Protection(https, TokenList(folder), wire if network else None, rate)


def lacking_keys(folder: Path, plan: PlanInfo, listen: str) -> list[str]:
    """What is still to be done with keys before the fleet works, one line each."""
    from edvit.runtime.keys.authority import gateway_hosts, members
    from edvit.runtime.keys.tokens import tokens

    now = datetime.now(timezone.utc)
    valid = {member.name for member in members(folder) if member.is_valid(now)}
    lines = [
        f"  {name} has no valid certificate: run `edvit keys request {name}` there, `edvit keys issue` here, and start "
        "the gateway again"
        for name in sorted({line.device for line in plan.placed} - valid)
    ]
    host = reachable(listen).partition("/")[2].rpartition(":")[0].strip("[]")
    if host not in gateway_hosts(folder):
        lines.append(f"  The gateway's certificate does not name {host}: run `edvit keys init --host {host}`")
    if not tokens(folder):
        lines.append("  Nobody has a token for HTTP yet: run `edvit keys token NAME --scope predict,watch`")
    return lines


def check_fleet(fleet: Fleet, plan: PlanInfo, path: Path) -> None:
    """Raises ConfigError when the file's fleet is not the one that the bundle was planned for."""
    from edvit.errors import ConfigError

    if fleet.name != plan.fleet.name:
        raise ConfigError(f"{path}: fleet {fleet.name}, but the bundle was built for fleet {plan.fleet.name}")
    names = {device.name for device in fleet.devices}
    missing = sorted({line.device for line in plan.placed} - names)
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}, where the bundle has sub-models; add it or build again")


def device_commands(plan: PlanInfo, listen: str, insecure: bool = False) -> list[str]:
    """What to type on each device that holds something."""
    connect = reachable(listen) + (" --insecure" if insecure and wanting_keys([listen]) else "")
    holders = {line.device for line in plan.placed}
    return [
        f"  edvit device --name {device.name} --fleet {plan.fleet.name} --connect {connect}"
        for device in plan.fleet.devices
        if device.name in holders
    ]


def reachable(endpoint: str) -> str:
    """An endpoint as other machines see it: this machine's address in place of 0.0.0.0."""
    import socket

    protocol, _, address = endpoint.partition("/")
    host, _, port = address.rpartition(":")
    if host not in ("0.0.0.0", "[::]"):
        return endpoint
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which interface would be used
            host = probe.getsockname()[0]
        except OSError:
            host = socket.gethostname()
    return f"{protocol}/{host}:{port}"


def announcement(url: str, bundle: Bundle) -> str:
    """Where it answers, and what to try."""
    manifest = bundle.manifest
    return (
        f"{bundle.path}: {counted(len(manifest.data.classes), 'class', 'es')}, "
        f"{counted(len(manifest.submodels), 'sub-model')}\n"
        f"Gateway at {url} (API documentation at {url}/docs). Ctrl-C ends it.\n"
        f"Try: edvit predict {url} IMAGE"
    )


def announce(url: str, bundle: Bundle, metrics_url: str | None = None) -> None:
    """Say where it answers."""
    if is_json():
        more = {} if metrics_url is None else {"metrics": metrics_url}
        event(log, logging.INFO, "serving", url=url, bundle=str(bundle.path), digest=bundle.digest, **more)
        return
    print(announcement(url, bundle))
    if metrics_url is not None:
        print(f"Metrics at {metrics_url}/metrics")


def what_to_type(commands: list[str], lacking: list[str]) -> None:
    """Say how devices are started, and what they lack for it."""
    if not is_json():
        print("\n".join(["On each device, type:", *commands, *lacking]))
    for line in lacking if is_json() else ():
        event(log, logging.WARNING, line.strip())


def tell(device: str, state: str) -> None:
    """Say what has become of a device."""
    if is_json():
        event(log, logging.INFO, "device", device=device, state=state)
    else:
        print(f"{time.strftime('%H:%M:%S')}  {device}: {state}")


def warn(line: str) -> None:
    if is_json():
        event(log, logging.WARNING, line)
    else:
        print(line, file=sys.stderr)


def say(line: str) -> None:
    """Say what has happened."""
    if is_json():
        event(log, logging.INFO, line)
    else:
        print(f"{time.strftime('%H:%M:%S')}  {line}")


def report_changes(current: Callable[[], Gateway]) -> NoReturn:
    """Print a line whenever a device comes, is ready, fails or goes; until a signal ends it.

    Raises FleetTakenError where another gateway is in charge of the fleet, with another bundle.
    """
    said: dict[str, str] = {}
    copies = CopyLines(current().replicas)
    served: str | None = None
    while True:
        gateway = current()
        gateway.check_lease()
        digest = gateway.bundle.digest
        if served not in (None, digest):
            say(f"a new bundle is served: {digest[:12]}")
        served = digest
        devices = gateway.devices()
        named = [device for device in devices if device.in_fleet]
        fleet = [device.name for device in named]
        named += [device for device in devices if not device.in_fleet][:NAMED_STRANGERS]
        # A device that is not of the fleet is not listed any more once it is gone.
        lines = dict.fromkeys(said, "gone") | {device.name: state_line(device, fleet) for device in named}
        for name, line in lines.items():
            if said.get(name, "gone") != line:
                tell(name, line)
        said = lines
        for line in copies.new(devices, gateway.copies_asked, time.monotonic()):
            say(line)
        time.sleep(POLL_S)


def state_line(device: DeviceStatus, fleet: list[str]) -> str:
    """`gone`, `loading`, `ready with sub-model 0`, or what is wrong; `fleet`: the names that the bundle's fleet has."""
    if device.state == "offline":
        return "gone"
    if not device.in_fleet:
        return f"not a device of this bundle (it has {', '.join(fleet)})"
    if device.problem is not None:
        return device.problem
    if set(device.planned) - set(device.submodels):
        return "loading"
    own = [submodel for submodel in device.submodels if submodel not in device.copies]
    held = [f"sub-model {', '.join(map(str, own))}"] if own else []
    held += [f"a copy of {', '.join(map(str, device.copies))}"] if device.copies else []
    return f"ready with {' and '.join(held)}" if held else "spare"
