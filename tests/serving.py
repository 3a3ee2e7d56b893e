"""Starts `edvit` commands as a user does, and sees to it that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
EDVIT = [sys.executable, "-m", "edvit"]


def run(*arguments, timeout=60, **options):
    """Run a command to its end; returns subprocess.CompletedProcess with text output."""
    return run_module("edvit", *arguments, timeout=timeout, **options)


def run_module(name, *arguments, timeout=60, **options):
    """Run `python -m NAME` from the repository's root to its end; returns as `run`."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    return subprocess.run(
        command, **{"cwd": ROOT, **options}, capture_output=True, text=True, timeout=timeout, check=False
    )


class Served:
    """A running `edvit serve`, with everything it started.

    Attributes:
        url: of its HTTP API.
        process: the gateway.
        devices: psutil.Process per device, by name.
    """

    def __init__(self, process, url):
        self.process = process
        self.url = url
        self.devices = {}
        for child in psutil.Process(process.pid).children(recursive=True):
            command = child.cmdline()
            if "--name" in command:
                self.devices[command[command.index("--name") + 1]] = child

    def stop(self, number=signal.SIGTERM, within_s=10.0):
        """Send a signal, wait for the end; returns (exit code, seconds it took)."""
        start = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(within_s)
        return code, time.monotonic() - start

    def memory_bytes(self):
        """Memory of the gateway with what decodes for it; what processes share is counted once."""
        gateway = psutil.Process(self.process.pid)
        devices = {child.pid for child in self.devices.values()}
        total = 0
        for process in [gateway, *gateway.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid not in devices:
                    total += process.memory_full_info().pss
        return total

    def left_over(self):
        """Names of the devices that still run."""
        return [name for name, child in self.devices.items() if alive(child)]


@contextlib.contextmanager
def serving(*arguments):
    """`edvit serve ARGUMENTS` until the block ends; free HTTP port unless one is given."""
    arguments = [*map(str, arguments)]
    if "--port" not in arguments:
        arguments += ["--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*EDVIT, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    served = None
    try:
        served = Served(process, _read_url(process))
        yield served
    finally:
        children = list(served.devices.values()) if served else []
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for child in [*children, process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                child.kill()
        process.wait()
        process.stdout.close()


def _read_url(process):
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"Gateway at (https?://\S+)", line):
            return found.group(1)
    raise AssertionError(f"edvit serve ended: {''.join(said)}")


def alive(process):
    """Whether a psutil.Process still runs (a zombie does not)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, within_s=20.0):
    """Poll until `condition()` is true; returns its last value."""
    deadline = time.monotonic() + within_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value
