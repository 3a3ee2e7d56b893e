"""`edvit device`: the agent on a device. Its imports are lean: a device has little memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.cli import NaturalInt, PositiveFloat
from edvit.cli.console.log_options import LogOptions
from edvit.runtime.device.cache_folder import CACHE_LIMIT_MB
from edvit.runtime.logs import event, write_logs

if TYPE_CHECKING:
    from edvit.runtime.wire.mutual_tls import MutualTls

log = logging.getLogger(__name__)

REFUSED = (
    "; if it runs there, its log says whether it refuses this device's certificate, and where the clock of this device "
    "is off by a day or more, this device refuses the gateway's"
)


def device(
    *,
    name: Annotated[str, Parameter(help="Name of this device in the fleet.")],
    fleet: Annotated[str, Parameter(help="Name of the fleet, as in its fleet.yaml.")] = "local",
    connect: Annotated[
        tuple[str, ...],
        Parameter(
            help="Where the gateway listens, tls/HOST:PORT, or tcp/HOST:PORT without keys; may be given again. "
            "Default: the device looks for it on the local network.",
        ),
    ] = (),
    listen: Annotated[
        tuple[str, ...],
        Parameter(
            help="Where peers may reach this device, tcp/HOST:PORT; may be given again. Needed behind some firewalls "
            "alone.",
        ),
    ] = (),
    keys: Annotated[
        Path | None,
        Parameter(
            help="Keys folder with this device's certificate, see `edvit keys request`. Default: ~/.config/edvit/keys, "
            "where the gateway is on a network."
        ),
    ] = None,
    insecure: Annotated[
        bool, Parameter(help="Take models and images from whoever calls itself the gateway, without keys.")
    ] = False,
    memory_mb: Annotated[
        PositiveFloat | None,
        Parameter(help="Memory that sub-models may use, 10^6 bytes; the limit in fleet.yaml holds as well."),
    ] = None,
    threads: Annotated[NaturalInt, Parameter(help="CPU threads of one inference; 0 is one for each core.")] = 0,
    cache: Annotated[Path | None, Parameter(help="Folder for model files; default: ~/.cache/edvit.")] = None,
    cache_limit: Annotated[
        PositiveFloat,
        Parameter(
            help="Megabytes (10^6 bytes) of model files that the folder keeps; those used least recently go first, and "
            "never one that is loaded."
        ),
    ] = CACHE_LIMIT_MB,
    logs: LogOptions = LogOptions(),
    verbose: Annotated[bool, Parameter(help="The same as --log-level info.")] = False,
) -> None:
    """Run the agent on a device: it loads the sub-models that the gateway plans for it, and answers.

    Start it in any order with `edvit serve`; it waits for the gateway, and for the next one.
    """
    import contextlib
    import os
    import re
    import signal
    import sys

    from edvit.errors import ConfigError
    from edvit.runtime.device.agent import DeviceAgent
    from edvit.runtime.wire.zenoh_transport import ZenohTransport, check_endpoint
    from edvit.validation import NAME_PATTERN

    for option, value in (("--name", name), ("--fleet", fleet)):
        if re.fullmatch(NAME_PATTERN, value) is None:
            raise ConfigError(f"{option} {value!r}: use letters, digits, '.', '_' and '-', at most 63")
    write_logs(logs.log_format, logs.log_level or ("info" if verbose else None), device=name, fleet=fleet)

    def say(line: str, level: int = logging.INFO) -> None:
        if logs.log_format == "json":
            event(log, level, line)
        else:
            print(f"{name}: {line}", flush=True)

    for endpoint in (*connect, *listen):
        check_endpoint(endpoint)
    tls = device_keys(name, keys, insecure, connect, listen)
    give_memory_back()
    with contextlib.ExitStack() as stack:
        transport = ZenohTransport(connect=connect, listen=listen, scouting=not connect, tls=tls)
        stack.callback(transport.close)
        agent = DeviceAgent(
            name,
            fleet,
            transport,
            cache=cache or default_cache(),
            cache_limit_bytes=int(cache_limit * 1_000_000),
            memory_limit_bytes=None if memory_mb is None else int(memory_mb * 1_000_000),
            threads=threads or len(os.sched_getaffinity(0)),
            say=say,
        )
        stack.callback(agent.close)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: agent.stop())
        say(f"started, looking for the gateway of fleet {fleet}")
        if insecure and tls is None:
            say("INSECURE: everybody on the network can give this device models and images", logging.WARNING)
        agent.run(alone=alone(fleet, connect) + (REFUSED if tls is not None else ""))
    # An inference may still run in its thread, and its C++ frames do not survive the end of the interpreter.
    sys.stdout.flush()
    os._exit(0)


def device_keys(
    name: str, keys: Path | None, insecure: bool, connect: Sequence[str], listen: Sequence[str]
) -> MutualTls | None:
    """The keys that this device uses; None for none.

    Raises:
        ConfigError: the gateway is on a network, and there are no keys and no `--insecure`; or both are given.
    """
    from edvit.errors import ConfigError
    from edvit.runtime.exposure import wanting_keys
    from edvit.runtime.keys.files import default_folder
    from edvit.runtime.wire.mutual_tls import device_tls

    if keys is not None and insecure:
        raise ConfigError("--keys and --insecure: give one of them")
    on_network = not connect or wanting_keys([*connect, *listen])
    if keys is None and (insecure or not on_network):
        return None
    place = (keys or default_folder()) / "device" / name
    if keys is None and not place.exists():
        raise ConfigError(
            f"device {name} needs keys: run `edvit keys request {name}`, or accept with --insecure that everybody on "
            "the network may give this device models and images"
        )
    return device_tls(place, name)


def alone(fleet: str, connect: Sequence[str]) -> str:
    """What to tell a person whose device has found no gateway."""
    if connect:
        return (
            f"still no gateway of fleet {fleet} at {' or '.join(connect)}: is `edvit serve` running there, with a "
            "bundle of that fleet, and is the port open?"
        )
    return f"still no gateway of fleet {fleet} on the local network: start `edvit serve`, or say where with --connect"


def give_memory_back() -> None:
    """Let large blocks go back to the system when they are freed, where the C library is glibc.

    Otherwise requests of some hundred kilobytes leave holes in the heap, and a device grows by 15 MB.
    """
    import contextlib
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 64 * 1024)
        library.mallopt(mmap_threshold, 64 * 1024)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/edvit`, or `~/.cache/edvit`."""
    import os

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edvit"
