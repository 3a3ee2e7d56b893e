"""What a build ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from edvit.units import counted

CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "Model", "cpu model", "Hardware")
"""Fields that name a processor or a board, the best first; ARM has no `model name`."""


def cpu() -> str:
    """The processor and how many of its cores this process may use: `Intel(R) Xeon(R) … · 2 cores`."""
    try:
        name = cpu_name(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        name = None
    return f"{name or platform.machine()} · {counted(len(os.sched_getaffinity(0)), 'core')}"


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name in the text of `/proc/cpuinfo`; None where it has none."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    known = {name.strip(): value.strip() for name, colon, value in pairs if colon}
    return next((known[name] for name in _NAMES if known.get(name)), None)
