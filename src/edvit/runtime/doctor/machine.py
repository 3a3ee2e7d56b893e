"""The processor, memory, clock and model folder of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from edvit.runtime.device.cache_folder import MODEL
from edvit.runtime.doctor.check import Check, bad, good, warning

WHEELS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
"""Machines, as Python names them, for which ONNX Runtime and Zenoh have wheels on Linux."""

TELLING = {"x86_64": ("avx2", "avx512f", "avx_vnni", "avx512_vnni"), "aarch64": ("asimd", "atomics", "asimddp", "i8mm")}
"""Features that change how fast a model runs; `atomics` is LSE."""

LITTLE_MEMORY = 200_000_000

FIRST_YEAR, LAST_YEAR = 2026, 2100
"""Years that a clock may be in."""

MAX_APART_S = 60.0
MAX_APART_WITH_KEYS_S = 86_400.0
"""A certificate is good from a day before it was made."""


def check_processor(machine: str | None = None, bits: int | None = None, cpuinfo: str | None = None) -> Check:
    """Whether there are wheels for this processor, and which of its features matter.

    Args:
        machine, bits, cpuinfo: as this machine has them, unless given: its name, the size of Python's pointers, and
            the text of /proc/cpuinfo.
    """
    machine = (machine or platform.machine()).lower()
    bits = bits or struct.calcsize("P") * 8
    if cpuinfo is None:
        cpuinfo = _read(Path("/proc/cpuinfo"))
    cores = len(os.sched_getaffinity(0))
    says = f"{machine}, {bits}-bit Python, {cores} cores"
    if bits != 64:
        return bad("processor", says, "install a 64-bit system: ONNX Runtime has no wheels for 32 bits")
    family = WHEELS.get(machine)
    if family is None:
        return bad("processor", says, "use an x86_64 or aarch64 machine: ONNX Runtime has wheels for these")
    flags = _flags(cpuinfo)
    return good("processor", f"{says}; {', '.join(f for f in TELLING[family] if f in flags) or 'no special features'}")


def check_memory(meminfo: str | None = None) -> Check:
    """How much memory there is; `meminfo` is the text of /proc/meminfo."""
    values = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in (meminfo or _read(Path("/proc/meminfo"))).splitlines())
        if rest.split()[:1] and rest.split()[0].isdigit()
    }
    free, total = values.get("MemAvailable"), values.get("MemTotal")
    if free is None or total is None:
        return warning("memory", "this system does not say", "look by yourself that 200 MB are free")
    says = f"{_mb(free)} of {_mb(total)} available"
    if free < LITTLE_MEMORY:
        return warning(
            "memory", says, f"end other programs: a device takes about {_mb(LITTLE_MEMORY)} with small models"
        )
    return good("memory", says)


def check_clock(now: datetime | None = None) -> Check:
    """Whether the year can be right: certificates and logs go by the clock."""
    now = now or datetime.now(timezone.utc)
    says = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if not FIRST_YEAR <= now.year <= LAST_YEAR:
        return bad("clock", says, "set the time: sudo timedatectl set-ntp true")
    return good("clock", says)


def check_clocks(theirs: datetime, ours: datetime) -> Check:
    """This machine's clock against that of the gateway."""
    apart_s = abs((theirs - ours).total_seconds())
    says = f"the gateway's differs by {apart_s:,.0f} s"
    advice = "set the time on both: sudo timedatectl set-ntp true"
    if apart_s > MAX_APART_WITH_KEYS_S:
        return bad("clocks", says, advice + "; certificates may seem expired, or not yet good")
    if apart_s > MAX_APART_S:
        return warning("clocks", says, advice + "; the times of logs do not agree")
    return good("clocks", says)


def check_cache(folder: Path, limit_bytes: int) -> Check:
    """Whether model files can be written, how much is there, and whether the disk has room for the limit."""
    here = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=here) as stream:
            stream.write(b"x" * 4096)
            stream.flush()
            os.fsync(stream.fileno())
        files = [path for path in folder.iterdir() if MODEL.fullmatch(path.name)] if folder.exists() else []
        used = sum(path.stat().st_size for path in files)
        free = shutil.disk_usage(here).free
    except OSError as error:
        advice = "choose another --cache, or let this user write there"
        return bad("cache", f"{folder} cannot be written ({error.strerror})", advice)
    says = f"{folder}: {len(files)} models, {_mb(used)} of at most {_mb(limit_bytes)}; {_mb(free)} free on its disk"
    if free < limit_bytes - used:
        return warning("cache", says, "give a smaller --cache-limit, or make room")
    return good("cache", says)


def _flags(cpuinfo: str) -> set[str]:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
