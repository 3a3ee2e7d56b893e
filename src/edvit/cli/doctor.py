"""`edvit doctor`: what keeps this machine from being a device or a gateway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.cli import Json, PositiveFloat
from edvit.cli.device import default_cache
from edvit.runtime.device.cache_folder import CACHE_LIMIT_MB

if TYPE_CHECKING:
    from edvit.runtime.doctor.check import Check
    from edvit.runtime.wire.mutual_tls import MutualTls


def doctor(
    *,
    connect: Annotated[
        tuple[str, ...],
        Parameter(help="Where a gateway listens for devices, tls/HOST:PORT or tcp/HOST:PORT; may be given again."),
    ] = (),
    url: Annotated[str | None, Parameter(help="Address of a gateway's HTTP API, such as https://gateway:8080.")] = None,
    name: Annotated[str | None, Parameter(help="This device's name in the fleet; default: each that has keys.")] = None,
    fleet: Annotated[str, Parameter(help="Name of the fleet that --connect shall lead to.")] = "local",
    keys: Annotated[Path | None, Parameter(help="Keys folder; default: ~/.config/edvit/keys.")] = None,
    ca: Annotated[
        Path | None,
        Parameter(
            env_var="EDVIT_CA",
            help="Certificate of the authority that the certificate of --url is of. The token is taken from "
            "EDVIT_TOKEN.",
        ),
    ] = None,
    cache: Annotated[Path | None, Parameter(help="Folder for model files; default: ~/.cache/edvit.")] = None,
    cache_limit: Annotated[PositiveFloat, Parameter(help="Its limit, 10^6 bytes.")] = CACHE_LIMIT_MB,
    as_json: Annotated[Json, Parameter(help="Print JSON.")] = False,
) -> int:
    """Look for what keeps this machine from being a device or a gateway: libraries, processor, clock, network, keys.

    One line a check, with what to do. The exit code is 1 if something is bad.
    """
    from edvit.runtime.doctor.check import as_json as to_json
    from edvit.runtime.doctor.check import as_text, healthy
    from edvit.runtime.keys.files import default_folder

    place = keys or default_folder()
    done = []
    for check in examine(
        connect=connect,
        url=url,
        name=name,
        fleet=fleet,
        keys=place,
        ca=ca if ca != Path() else None,
        cache=cache or default_cache(),
        cache_limit_bytes=int(cache_limit * 1_000_000),
    ):
        done.append(check)
        if not as_json:
            print(as_text(check), flush=True)
    if as_json:
        print(to_json(done))
    return 0 if healthy(done) else 1


def examine(
    *,
    connect: tuple[str, ...],
    url: str | None,
    name: str | None,
    fleet: str,
    keys: Path,
    ca: Path | None,
    cache: Path,
    cache_limit_bytes: int,
) -> Iterator[Check]:
    """Every check, each as soon as it is done."""
    from edvit.runtime.doctor.keys import check_keys
    from edvit.runtime.doctor.machine import check_cache, check_clock, check_memory, check_processor
    from edvit.runtime.doctor.software import check_engine, check_libraries, check_python
    from edvit.runtime.doctor.url import check_url

    yield check_python()
    yield check_processor()
    libraries = check_libraries()
    yield from libraries
    yield check_engine()
    yield check_memory()
    yield check_cache(cache, cache_limit_bytes)
    yield check_clock()
    yield from check_keys(keys, name, datetime.now(timezone.utc))
    if any(check.state == "bad" and check.name == "eclipse-zenoh" for check in libraries):
        return  # what follows would end this process, or fail for a reason that has been said
    from edvit.runtime.doctor.network import check_gateway, check_interfaces

    yield from check_interfaces()
    for endpoint in connect:
        yield from check_gateway(endpoint, fleet, device_tls_of(keys, name) if endpoint.startswith("tls/") else None)
    if url is not None:
        yield from check_url(url, token=os.environ.get("EDVIT_TOKEN") or None, ca=ca)


def device_tls_of(keys: Path, name: str | None) -> MutualTls | None:
    """The keys of the device, or of the only one that has some; None if there are none."""
    from edvit.errors import EdvitError
    from edvit.runtime.wire.mutual_tls import device_tls

    homes = [keys / "device" / name] if name is not None else sorted((keys / "device").glob("*"))
    try:
        return device_tls(homes[0], homes[0].name) if len(homes) == 1 else None
    except EdvitError:
        return None
