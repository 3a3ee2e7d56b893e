"""The processes that decode uploads: what runs in them. `decoders.py` starts them and talks to them.

One parent imports the libraries and then only forks: a decoder imports nothing, and shares the parent's
memory until it writes to it. The parent decodes nothing, so no upload can harm it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edvit.errors import EdvitError, ImageError, TooLargeError
from edvit.inputs import formats
from edvit.inputs.audio import check_installed
from edvit.inputs.preprocess import Limits, Preprocessing, decode_file

HEAD = struct.Struct("!cQ")
"""What comes before every message on a decoder's socket: its kind, and how many bytes follow."""

JOB, ARRAY, ERROR = b"J", b"A", b"E"
"""Kinds of messages: a file to decode; its array; an error, `CODE MESSAGE`."""

STARTED, START, END = b"started", b"start", b"end"
"""Messages on the parent's control socket, see `main`."""


class Order(NamedTuple):
    """What one decoder may use.

    Attributes:
        nice: how much lower than the gateway's its priority is.
        memory_bytes: beyond what it has when it starts.
        cpu_s: seconds of processor for each file.
        limits: what it decodes, judged by a file's header.
    """

    nice: int
    memory_bytes: int
    cpu_s: float
    limits: Limits

    def message(self) -> bytes:
        """As it is sent to the parent."""
        numbers = (self.nice, self.memory_bytes, self.cpu_s, *self.limits)
        return b" ".join([START, *(str(number).encode() for number in numbers)])

    @classmethod
    def parse(cls, numbers: list[bytes]) -> Order:
        """From the words of such a message, after the first."""
        nice, memory_bytes, cpu_s, *limits = numbers
        return cls(int(nice), int(memory_bytes), float(cpu_s), Limits(*map(int, limits)))


def main(control: socket.socket, how: Preprocessing) -> None:
    """Fork decoders on demand until the gateway closes `control`, and end them then.

    A message is an order (`Order.message`) with the decoder's socket, answered by its process id; or it is `end PID`,
    answered by the status that `os.waitpid` gives. Only this process waits for its children, so that a process id is
    never that of another process.
    """
    try:
        prepare(how)
    except EdvitError as error:
        control.send(_told(error))
        return
    control.send(STARTED)
    children: set[int] = set()
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 1000, 1)
            verb, *numbers = message.split()
            if verb == START:
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _run_decoder(descriptors[0], how, Order.parse(numbers))
                os.close(descriptors[0])
                children.add(pid)
                control.send(str(pid).encode())
            elif verb == END:
                pid = int(numbers[0])
                ours = pid in children  # else it is a child of a parent that has ended
                children.discard(pid)
                control.send(str(_end(pid) if ours else 0).encode())
    except (OSError, ValueError):  # ValueError: an empty message, which is the end of the connection
        pass
    finally:
        for pid in children:
            _end(pid)


def prepare(how: Preprocessing) -> None:
    """Load what decoding needs. Raises MissingExtraError where it is not installed."""
    formats.readable()
    if how.spectrogram is not None:
        check_installed()
    gc.collect()
    gc.freeze()  # a collection would write to every object, and so copy the memory that decoders share


def _end(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _run_decoder(descriptor: int, how: Preprocessing, order: Order) -> None:
    """Decode until the gateway hangs up; never returns."""
    status = 1
    try:
        _restrict(order)
        with socket.socket(fileno=descriptor) as jobs:
            for data in _jobs(jobs):
                # Counts processor time, of every thread; unanswered, the signal ends the process, in a library as well.
                signal.setitimer(signal.ITIMER_PROF, order.cpu_s)
                kind, answer = _answer(data, how, order.limits)
                signal.setitimer(signal.ITIMER_PROF, 0)
                send(jobs, kind, answer)
        status = 0
    except OSError:
        pass  # the gateway is gone
    finally:
        os._exit(status)


def _restrict(order: Order) -> None:
    os.nice(order.nice)
    most = _data_bytes() + order.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder writes no file
    with contextlib.suppress(OSError):  # where memory runs out all the same, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()


def _jobs(jobs: socket.socket) -> Iterator[bytes]:
    while head := receive(jobs, HEAD.size):
        yield receive(jobs, HEAD.unpack(head)[1])


def send(connection: socket.socket, kind: bytes, content: bytes) -> None:
    """One message; at once where it fits, so that the other side wakes up once."""
    head = HEAD.pack(kind, len(content))
    sent = connection.sendmsg([head, content]) - HEAD.size
    if sent < 0:
        connection.sendall(head[sent:])
    connection.sendall(memoryview(content)[max(0, sent) :])


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; fewer only where the connection ended."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size and (read := connection.recv_into(view[got:])):
        got += read
    return bytes(data) if got == size else b""


def _answer(data: bytes, how: Preprocessing, limits: Limits) -> tuple[bytes, bytes]:
    """Kind and content of the reply."""
    try:
        array = decode_file(data, how, limits)
    except EdvitError as error:
        return ERROR, _told(error)
    except MemoryError:
        return ERROR, _told(TooLargeError("decoding the file takes too much memory: send a smaller one"))
    except Exception:
        return ERROR, _told(ImageError("the file is damaged: it cannot be decoded"))
    return ARRAY, array.tobytes()


def _told(error: EdvitError) -> bytes:
    """`CODE MESSAGE`, as `edvit.errors.error_from` takes them."""
    return f"{error.code} {error}".encode()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), Preprocessing.model_validate_json(sys.argv[2]))
