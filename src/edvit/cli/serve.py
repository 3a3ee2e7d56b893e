"""`edvit serve`: the gateway."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from cyclopts import Parameter

from edvit.cli import Port, PositiveFloat
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.units import counted

if TYPE_CHECKING:
    from edvit.bundle import Bundle, PlanInfo
    from edvit.fleet import Fleet
    from edvit.runtime.gateway.gateway import Gateway
    from edvit.runtime.gateway.reconcile import DeviceStatus

POLL_S = 0.25
STRANGERS = 20
"""Devices outside the fleet that are named."""


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
        str, Parameter(help="Zenoh endpoint that devices connect to; not with --local.")
    ] = "tcp/0.0.0.0:7447",
    deadline_s: Annotated[
        PositiveFloat | None,
        Parameter(
            help="Seconds within which a request is answered, once its body is here. Default: four times the 99th "
            "percentile of the last answers, from 0.5 to 2.",
        ),
    ] = None,
    strict: Annotated[bool, Parameter(help="Refuse requests that cannot be answered with every sub-model.")] = False,
    image_encoding: Annotated[
        ImageEncoding,
        Parameter(
            help="How images travel to devices: webp is exact and half as large or less, jpeg is smaller and inexact."
        ),
    ] = "raw",
) -> None:
    """Serve a bundle over HTTP: POST /predict, GET /health, GET /fleet, documentation at /docs."""
    from edvit.bundle import read_bundle
    from edvit.fleet import load_fleet
    from edvit.runtime.local import serve_locally
    from edvit.runtime.service import serve as serve_fleet
    from edvit.runtime.service import until_signalled

    verified = read_bundle(bundle)
    if fleet is not None:
        check_fleet(load_fleet(fleet), verified.manifest.plan, fleet)
    with until_signalled():
        if local:
            with serve_locally(
                verified,
                host=host,
                port=port,
                deadline_s=deadline_s,
                image_encoding=image_encoding,
                strict=strict,
            ) as service:
                print(announcement(service.url, verified))
                report_changes(service.gateway)
        else:
            with serve_fleet(
                verified,
                host=host,
                port=port,
                listen=listen,
                deadline_s=deadline_s,
                image_encoding=image_encoding,
                strict=strict,
            ) as service:
                print(announcement(service.url, verified))
                print("\n".join(["On each device, type:", *device_commands(verified.manifest.plan, listen)]))
                report_changes(service.gateway)


def check_fleet(fleet: Fleet, plan: PlanInfo, path: Path) -> None:
    """Raises ConfigError when the file's fleet is not the one that the bundle was planned for."""
    from edvit.errors import ConfigError

    if fleet.name != plan.fleet.name:
        raise ConfigError(f"{path}: fleet {fleet.name}, but the bundle was built for fleet {plan.fleet.name}")
    names = {device.name for device in fleet.devices}
    missing = sorted({line.device for line in plan.placed} - names)
    if missing:
        raise ConfigError(f"{path}: lacks {', '.join(missing)}, where the bundle has sub-models; add it or build again")


def device_commands(plan: PlanInfo, listen: str) -> list[str]:
    """What to type on each device that holds something."""
    connect = reachable(listen)
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


def report_changes(gateway: Gateway) -> NoReturn:
    """Print a line whenever a device comes, is ready, fails or goes; until a signal ends it.

    Raises FleetTakenError where another gateway is in charge of the fleet, with another bundle.
    """
    said: dict[str, str] = {}
    while True:
        gateway.check_lease()
        devices = gateway.devices()
        named = [device for device in devices if device.in_fleet]
        fleet = [device.name for device in named]
        named += [device for device in devices if not device.in_fleet][:STRANGERS]
        # A device that is not of the fleet is not listed any more once it is gone.
        lines = dict.fromkeys(said, "gone") | {device.name: state_line(device, fleet) for device in named}
        for name, line in lines.items():
            if said.get(name, "gone") != line:
                print(f"{time.strftime('%H:%M:%S')}  {name}: {line}")
        said = lines
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
    return f"ready with sub-model {', '.join(map(str, device.submodels))}" if device.planned else "spare"
