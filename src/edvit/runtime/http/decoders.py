"""Decoding uploads in processes of their own, which are ended when a file takes too much time or memory.

Small files are decoded by processes that stay. A file that is large, or that takes one of them too long, is decoded by
a process of its own, of low priority, one at a time: however long it takes, small files do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import numpy as np
from anyio import CapacityLimiter, fail_after, to_thread

from edvit.errors import (
    CostlyFileError,
    EdvitError,
    ImageError,
    OverloadedError,
    ServiceError,
    TooLargeError,
    error_from,
)
from edvit.inputs.preprocess import Limits, Preprocessing, UInt8
from edvit.runtime.http import decoder_process
from edvit.runtime.http.decoder_process import ARRAY, END, HEAD, JOB, STARTED, Order, receive, send
from edvit.runtime.http.places import Places

QUICK_BYTES = 524_288
"""Larger files are decoded by a process of their own."""

QUICK_S = 10.0
"""Seconds for a small file, however busy the machine is."""

QUICK = Order(nice=0, memory_bytes=64_000_000, cpu_s=0.2, limits=Limits(memory_bytes=24_000_000, work=12_000_000))
"""What the decoder of a small file may use; a file that takes more is decoded by a process of its own."""

THOROUGH_S = 30.0
"""Seconds for any other file, however busy the machine is."""

THOROUGH = Order(nice=19, memory_bytes=200_000_000, cpu_s=5, limits=Limits(memory_bytes=160_000_000, work=500_000_000))
"""What the decoder of any other file may use."""

QUICK_PROCESSES, QUICK_PROCESSES_OF_A_CLIENT = 3, 2
"""Processes that decode small files; and how many of them work for one client at a time."""

FILES_OF_A_PROCESS = 500
"""A process that decodes small files is replaced after so many, whatever memory the libraries have lost by then."""

WAITING = 64
"""Small files that wait for a decoder, at most, and as many others."""

SUSPECT_S = 30.0
"""Seconds for which a client's files are all taken for costly, after one that was. Others do not wait for it then."""

START_S = 60.0
"""Seconds that the libraries may take to load."""

STOP_S = 2.0
"""Seconds that the parent of the decoders may take to end them and itself."""


class Decoders:
    """Decodes the files of uploads. `decode` is for one event loop; `close` may be called from any thread.

    Raises:
        MissingExtraError: a library that `how` needs is not installed.
    """

    def __init__(self, how: Preprocessing) -> None:
        self._how = how
        self._parent = _Parent(how)
        self._idle = [self._parent.start(QUICK) for _ in range(QUICK_PROCESSES)]
        self._quick = Places(QUICK_PROCESSES, WAITING, QUICK_PROCESSES_OF_A_CLIENT)
        self._thorough = Places(1, WAITING)
        self._threads: CapacityLimiter | None = None
        self._suspects: dict[str, float] = {}

    async def decode(self, data: bytes, client: str, wait_s: float) -> tuple[UInt8, float]:
        """Decode a file of the kind that the model takes, uint8 `[channels, size, size]`.

        Args:
            client: whose file it is: each client gets as many turns as any other.
            wait_s: seconds that it may wait for a decoder, which are not those that decoding takes.

        Returns:
            The array, and the seconds that the file has waited.

        Raises:
            ImageError: as `edvit.inputs.preprocess.decode_file`.
            CostlyFileError: decoding took too long.
            TooLargeError: decoding took too much memory.
            OverloadedError: no decoder was free in time, or as `Places.place`.
            TooManyRequestsError: as `Places.place`.
        """
        self._threads = self._threads or CapacityLimiter(QUICK_PROCESSES + 1)
        waiting = _Waiting(wait_s)
        if len(data) <= QUICK_BYTES and not self._is_suspect(client):
            async with waiting.place(self._quick, client):
                array = await to_thread.run_sync(partial(self._decode_quickly, data), limiter=self._threads)
            if array is not None:
                return array, waiting.waited_s
            self._suspect(client)
        async with waiting.place(self._thorough, client):
            try:
                array = await to_thread.run_sync(partial(self._decode_thoroughly, data), limiter=self._threads)
            except CostlyFileError:
                self._suspect(client)
                raise
        return array, waiting.waited_s

    def close(self) -> None:
        """End every process. A file that is being decoded is given up."""
        self._parent.close()
        while self._idle:
            self._idle.pop().end()

    def _is_suspect(self, client: str) -> bool:
        return self._suspects.get(client, 0.0) > time.monotonic()

    def _suspect(self, client: str) -> None:
        now = time.monotonic()
        self._suspects = {name: until for name, until in self._suspects.items() if until > now}
        self._suspects[client] = now + SUSPECT_S

    def _decode_quickly(self, data: bytes) -> UInt8 | None:
        """None: it takes longer, or more memory, than a small file may."""
        decoder = self._idle.pop() if self._idle else self._parent.start(QUICK)
        try:
            return self._array(decoder.ask(data, QUICK_S))
        except (CostlyFileError, TooLargeError, _LostError):
            return None
        finally:
            if decoder.is_lost or decoder.files >= FILES_OF_A_PROCESS:
                decoder.end()
            else:
                self._idle.append(decoder)

    def _decode_thoroughly(self, data: bytes) -> UInt8:
        decoder = self._parent.start(THOROUGH)
        try:
            return self._array(decoder.ask(data, THOROUGH_S))
        except _LostError as lost:
            status = decoder.end()
            if lost.in_time and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF):
                raise ImageError("the file is damaged: the program that decodes it has crashed") from None
            raise CostlyFileError(
                f"decoding the file takes over {THOROUGH.cpu_s:g} s of processor time: send a smaller or simpler one"
            ) from None
        finally:
            decoder.end()

    def _array(self, content: bytes) -> UInt8:
        return np.frombuffer(content, dtype=np.uint8).reshape(self._how.shape)


class _Waiting:
    """How long one file has waited for decoders.

    Args:
        most_s: seconds that it may, together.
    """

    def __init__(self, most_s: float) -> None:
        self.waited_s = 0.0
        self._most_s = most_s

    @asynccontextmanager
    async def place(self, places: Places, client: str) -> AsyncIterator[None]:
        """As `Places.place`. Raises OverloadedError where it would wait for too long, too."""
        start = time.monotonic()
        async with AsyncExitStack() as held:
            try:
                with fail_after(self._most_s - self.waited_s):
                    await held.enter_async_context(places.place(client))
            except TimeoutError:
                raise OverloadedError(f"no decoder was free for {self._most_s:.2g} s: try again in a moment") from None
            self.waited_s += time.monotonic() - start
            yield


class _LostError(Exception):
    """A decoder did not answer.

    Attributes:
        in_time: its process ended before its time was over.
    """

    def __init__(self, *, in_time: bool) -> None:
        super().__init__()
        self.in_time = in_time


class _Decoder:
    """One process that decodes one file after the other; for one thread at a time.

    Attributes:
        files: how many files it was given.
        is_lost: it did not answer, and never will.
    """

    def __init__(self, parent: _Parent, pid: int, connection: socket.socket) -> None:
        self.files = 0
        self.is_lost = False
        self._parent = parent
        self._pid = pid
        self._connection = connection
        self._status: int | None = None

    def ask(self, data: bytes, seconds: float) -> bytes:
        """The array's bytes. Raises what the file's decoding raised, and _LostError."""
        self.files += 1
        self._connection.settimeout(seconds)
        try:
            send(self._connection, JOB, data)
            head = receive(self._connection, HEAD.size)
            kind, size = HEAD.unpack(head) if head else (b"", 0)
            content = receive(self._connection, size)
        except OSError as error:
            self.is_lost = True
            raise _LostError(in_time=not isinstance(error, TimeoutError)) from None
        if not head or len(content) < size:
            self.is_lost = True
            raise _LostError(in_time=True)
        if kind == ARRAY:
            return content
        code, _, message = content.decode(errors="replace").partition(" ")
        raise error_from(code, message)

    def end(self) -> int:
        """End the process; the status that `os.waitpid` gave of it."""
        if self._status is None:
            self._connection.close()
            self._status = self._parent.end(self._pid)
        return self._status


class _Parent:
    """The process whose children decode; it is started again when it has ended. Thread-safe."""

    def __init__(self, how: Preprocessing) -> None:
        self._how = how
        self._lock = threading.Lock()
        self._closed = False
        self._process, self._control = self._launch()

    def start(self, order: Order) -> _Decoder:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # a small file and its array fit
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUICK_BYTES)
        try:
            with theirs:
                return _Decoder(self, self._tell(order.message(), theirs), ours)
        except EdvitError:
            ours.close()
            raise

    def end(self, pid: int) -> int:
        try:
            return self._tell(END + f" {pid}".encode())
        except EdvitError:
            return 0

    def close(self) -> None:
        with self._lock:
            self._closed = True
            _stop(self._process, self._control)

    def _tell(self, message: bytes, connection: socket.socket | None = None) -> int:
        descriptors = [] if connection is None else [connection.fileno()]
        with self._lock:
            if self._closed:
                raise ServiceError("the gateway is ending: ask again when it has been started again")
            try:
                return self._exchange(message, descriptors)
            except (OSError, ValueError):  # ValueError: an empty answer, which is the end of the connection
                _stop(self._process, self._control)
                self._process, self._control = self._launch()
                return self._exchange(message, descriptors) if descriptors else 0  # its children ended with it

    def _exchange(self, message: bytes, descriptors: list[int]) -> int:
        socket.send_fds(self._control, [message], descriptors)
        return int(self._control.recv(100))

    def _launch(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            # A session of its own: Ctrl-C in the terminal reaches the gateway alone, which ends its decoders.
            process = subprocess.Popen(
                [sys.executable, "-m", decoder_process.__name__, str(number), self._how.model_dump_json()],
                pass_fds=[number],
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ours.settimeout(START_S)
        said = b""
        with contextlib.suppress(OSError):
            said = ours.recv(1000)
        if said == STARTED:
            return process, ours
        _stop(process, ours)
        if said:
            code, _, message = said.decode().partition(" ")
            raise error_from(code, message)
        raise ServiceError("the processes that decode uploads do not start: is there memory for them?")


def _stop(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """End a parent, and with it its children."""
    control.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
