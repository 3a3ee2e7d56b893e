"""Real `edvit device` processes and a real gateway over Zenoh on loopback."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from free_port import free_endpoint
from waiting import eventually

EDVIT = [sys.executable, "-m", "edvit"]


def _held(pid):
    """Whether each of its threads has stopped: proc(5), the letter after the command's name in parentheses."""
    try:
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # a thread ended between the two
        return False
    return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}


def _read(stream, into):
    with stream:
        into.extend(stream)


class DeviceProcess:
    """One running `edvit device`, with what it printed.

    Args:
        arguments: of `edvit device`.
        edvit: the command that is `edvit`.
        environment: of the process; None for this one's.
        before: put before the command; it becomes it.
    """

    def __init__(self, arguments, edvit=EDVIT, environment=None, before=()):
        self.process = subprocess.Popen(
            [*before, *edvit, "device", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self.errors = []
        self._readers = [
            threading.Thread(target=_read, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self):
        return self.process.pid

    def says(self, text):
        return any(text in line for line in list(self.lines))

    def stop(self):
        """Hold it. The signal returns before every thread has seen it: one may still answer a request by then."""
        self.process.send_signal(signal.SIGSTOP)
        eventually(lambda: _held(self.pid))

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.wait()

    def end(self, number=signal.SIGTERM, timeout=30):
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=30):
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join()
        return code


class ProcessFleet:
    def __init__(self, stack, bundle, cache):
        self._stack = stack
        self.bundle = bundle
        self.cache = cache
        self.endpoint = free_endpoint()

    def device(self, name, *arguments):
        fleet = self.bundle.manifest.plan.fleet.name
        here = ["--name", name, "--fleet", fleet, "--connect", self.endpoint, "--cache", self.cache]
        device = DeviceProcess([*here, "--threads", 1, *arguments])
        self._stack.callback(device.kill)
        return device

    def transport(self):
        """The gateway's; only one at a time can listen."""
        transport = ZenohTransport(listen=[self.endpoint], scouting=False)
        self._stack.callback(transport.close)
        return transport

    def gateway(self, *, ready=True, deadline_s=60.0, transport=None):
        gateway = Gateway(self.bundle, transport or self.transport(), deadline_s=deadline_s)
        self._stack.callback(gateway.close)
        if ready:
            gateway.wait_ready(60)
        return gateway


@contextlib.contextmanager
def process_fleet(bundle, cache):
    """Everything that is started in the block is ended with it."""
    with contextlib.ExitStack() as stack:
        yield ProcessFleet(stack, bundle, cache)
