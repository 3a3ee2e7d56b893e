"""`edvit device`: the agent on a device. Its imports are lean: a device has little memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from edvit.cli import NaturalInt, PositiveFloat


def device(
    *,
    name: Annotated[str, Parameter(help="Name of this device in the fleet.")],
    fleet: Annotated[str, Parameter(help="Name of the fleet, as in its fleet.yaml.")] = "local",
    connect: Annotated[
        tuple[str, ...],
        Parameter(
            help="Where the gateway listens, tcp/HOST:PORT; may be given again. Default: the device looks for it on "
            "the local network.",
        ),
    ] = (),
    listen: Annotated[
        tuple[str, ...],
        Parameter(
            help="Where peers may reach this device, tcp/HOST:PORT; may be given again. Needed behind some firewalls "
            "alone.",
        ),
    ] = (),
    memory_mb: Annotated[
        PositiveFloat | None,
        Parameter(help="Memory that sub-models may use, 10^6 bytes; the limit in fleet.yaml holds as well."),
    ] = None,
    threads: Annotated[NaturalInt, Parameter(help="CPU threads of one inference; 0 is one for each core.")] = 0,
    cache: Annotated[Path | None, Parameter(help="Folder for model files; default: ~/.cache/edvit.")] = None,
    verbose: Annotated[bool, Parameter(help="Log what happens to stderr.")] = False,
) -> None:
    """Run the agent on a device: it loads the sub-models that the gateway plans for it, and answers.

    Start it in any order with `edvit serve`; it waits for the gateway, and for the next one.
    """
    import contextlib
    import logging
    import os
    import re
    import signal
    import sys

    from edvit.errors import ConfigError
    from edvit.fleet import NAME_PATTERN
    from edvit.runtime.device.agent import DeviceAgent
    from edvit.runtime.wire.zenoh_transport import ZenohTransport

    for option, value in (("--name", name), ("--fleet", fleet)):
        if re.match(NAME_PATTERN, value) is None:
            raise ConfigError(f"{option} {value!r}: use letters, digits, '.', '_' and '-', at most 63")
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    give_memory_back()
    with contextlib.ExitStack() as stack:
        transport = ZenohTransport(connect=connect, listen=listen, scouting=not connect)
        stack.callback(transport.close)
        agent = DeviceAgent(
            name,
            fleet,
            transport,
            cache=cache or default_cache(),
            memory_limit_bytes=None if memory_mb is None else int(memory_mb * 1_000_000),
            threads=threads or len(os.sched_getaffinity(0)),
            say=lambda line: print(f"{name}: {line}", flush=True),
        )
        stack.callback(agent.close)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: agent.stop())
        print(f"{name}: started, looking for the gateway of fleet {fleet}", flush=True)
        agent.run(alone=alone(fleet, connect))
    # An inference may still run in its thread, and its C++ frames do not survive the end of the interpreter.
    sys.stdout.flush()
    os._exit(0)


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
