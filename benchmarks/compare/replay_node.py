"""One process of a replay, the gateway or a device: `python -m benchmarks.compare.replay_node`.

Its settings are one line of JSON on standard input, which is also its tether: when it closes, the process ends. Its
report is one line of JSON on standard output, written when every image is through; it goes on answering until it ends,
since others may still wait for it. An error is one line on standard error and exit code 1.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare.exchange import Program, Send, Step, Work
from benchmarks.compare.onnx_model import OnnxModel
from edvit.errors import DeadlineError, EdvitError, WireError
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.transport import Failure, Reply, Request
from edvit.runtime.wire.zenoh_transport import ZenohTransport

RETRY_S = 0.05
"""Between two tries to reach a node that is not up yet."""


@dataclass(frozen=True)
class Settings:
    """What a node is told."""

    node: int
    """0 is the gateway."""
    program: Program
    endpoints: tuple[str, ...]
    """The endpoint of every node; each listens on its own and connects to those before it."""
    real: bool
    """Run the models; else sleep for as long as they take alone."""
    image: bytes
    """What the gateway starts with; empty for devices."""
    warm_up: int
    images: int
    in_flight: int
    deadline_s: float
    """For one image, seconds; the first one includes the time that all need to start."""

    @property
    def total(self) -> int:
        """Images in all: to warm up, one at a time, several at a time and the start and end of these."""
        return self.warm_up + self.images + (self.images + 2 * self.in_flight)

    def to_json(self) -> str:
        values = {**asdict(self), "image": base64.b64encode(self.image).decode()}
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values = json.loads(text)
        steps = [_step(**step) for step in values.pop("program")]
        image = base64.b64decode(values.pop("image"))
        endpoints = tuple(values.pop("endpoints"))
        return cls(program=tuple(steps), image=image, endpoints=endpoints, **values)


def _step(waits: int, work: dict[str, Any], sends: list[dict[str, Any]]) -> Step:
    model = Path(work["model"]) if work["model"] else None
    return Step(waits, Work(work["seconds"], model), tuple(Send(**send) for send in sends))


@dataclass(frozen=True)
class Report:
    """What a node tells at the end."""

    received_bytes: int
    """Payloads of all images, from other nodes."""
    latencies_s: list[float] = field(default_factory=list)
    """The gateway's: of each image that was alone under way."""
    images_per_s: float = 0.0
    """The gateway's: of the images of which several were under way, without the first and the last of them: while the
    first come through the nodes still fill, and while the last do they run empty."""
    answer: str = ""
    """The gateway's: base64 of what its last step gave for the last image."""


@dataclass(frozen=True)
class _Message:
    image: int
    send: Send
    payload: bytes
    until: float


class ReplayNode:
    """A node at work, from its making on; its threads end with the process.

    A message is a query that the receiver answers at once, before it works: the sender is free to go on, and knows
    that it arrived.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models = {
            step.work.model: OnnxModel(step.work.model)
            for step in settings.program
            if settings.real and step.work.model is not None
        }
        largest = max((send.bytes for step in settings.program for send in step.sends), default=0)
        self._filler = os.urandom(largest)
        self._waiting: dict[tuple[int, int], dict[int, bytes]] = {}
        self._lock = threading.Lock()
        self._received_bytes = 0
        # The oldest image first: with several under way they do not all come through at the same time.
        self._ready: queue.PriorityQueue[tuple[int, int, list[bytes]]] = queue.PriorityQueue()
        self._leaving: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._unacknowledged: queue.SimpleQueue[tuple[_Message, Iterator[Reply | Failure]]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[float, bytes] | Exception] = queue.SimpleQueue()
        own = settings.endpoints[settings.node]
        self._transport = ZenohTransport(listen=[own], connect=settings.endpoints[: settings.node], scouting=False)
        self._transport.serve(_key(settings.node), self._receive)
        for loop in (self._work, self._send, self._acknowledged):
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__, daemon=True).start()

    def run(self) -> Report:
        """Every image. Raises EdvitError where one does not come through."""
        if self._settings.node:
            for _ in range(self._settings.total):
                self._next_done(forever=True)
            return self._report()
        for image in range(self._settings.warm_up):
            self._start(image)
            self._next_done()
        latencies, first = [], self._settings.warm_up
        for image in range(first, first + self._settings.images):
            start = time.perf_counter()
            self._start(image)
            latencies.append(self._next_done()[0] - start)
        first, window = first + self._settings.images, self._settings.in_flight
        for image in range(first, first + window):
            self._start(image)
        ends = []
        for image in range(first + window, self._settings.total + window):
            end, answer = self._next_done()
            ends.append(end)
            if image < self._settings.total:
                self._start(image)
        took = ends[window + self._settings.images - 1] - ends[window - 1]
        return self._report(
            latencies_s=latencies,
            images_per_s=self._settings.images / took,
            answer=base64.b64encode(answer).decode(),
        )

    def _report(self, **values: Any) -> Report:
        with self._lock:
            return Report(received_bytes=self._received_bytes, **values)

    def _start(self, image: int) -> None:
        self._ready.put((image, 0, [self._settings.image]))

    def _next_done(self, forever: bool = False) -> tuple[float, bytes]:
        try:
            done = self._done.get(timeout=None if forever else self._settings.deadline_s)
        except queue.Empty:
            raise DeadlineError(f"an image was not through after {self._settings.deadline_s:g} s") from None
        if isinstance(done, Exception):
            raise done
        return done

    # --- threads ---------------------------------------------------------------------------------------

    def _guarded(self, loop: Any) -> None:
        try:
            while True:
                loop()
        except Exception as error:
            self._done.put(error)

    def _receive(self, request: Request) -> Iterator[Reply]:
        try:
            image, step, source = map(int, request.packet.header.split())
            waits = self._settings.program[step].waits
        except (ValueError, IndexError):
            raise WireError("a message that is not of this replay") from None
        with self._lock:
            self._received_bytes += len(request.packet.payload)
        self._take(image, step, source, request.packet.payload, waits)
        yield Reply(_key(self._settings.node), Packet(b""))

    def _take(self, image: int, step: int, source: int, payload: bytes, waits: int) -> None:
        with self._lock:
            arrived = self._waiting.setdefault((image, step), {})
            arrived[source] = payload
            if len(arrived) == waits:
                del self._waiting[image, step]
                self._ready.put((image, step, [arrived[node] for node in sorted(arrived)]))

    def _work(self) -> None:
        image, index, inputs = self._ready.get()
        step = self._settings.program[index]
        output = self._compute(step.work, inputs)
        end = time.perf_counter()
        until = time.monotonic() + self._settings.deadline_s
        for send in step.sends:
            payload = (output if self._settings.real else self._filler)[: send.bytes]
            if len(payload) != send.bytes:
                raise WireError(f"a step gave {len(payload)} bytes where the exchange says {send.bytes}")
            if send.target == self._settings.node:
                self._take(image, send.step, send.target, payload, self._settings.program[send.step].waits)
            else:
                self._leaving.put(_Message(image, send, payload, until))
        if index == len(self._settings.program) - 1:
            self._done.put((end, output))

    def _compute(self, work: Work, inputs: list[bytes]) -> bytes:
        if not self._settings.real:
            time.sleep(work.seconds)
            return b""
        joined = b"".join(inputs)
        return joined if work.model is None else self._models[work.model].run(joined)

    def _send(self) -> None:
        message = self._leaving.get()
        header = f"{message.image} {message.send.step} {self._settings.node}".encode()
        left_s = max(RETRY_S, message.until - time.monotonic())
        replies = self._transport.ask(_key(message.send.target), Packet(header, message.payload), deadline_s=left_s)
        self._unacknowledged.put((message, replies))

    def _acknowledged(self) -> None:
        message, replies = self._unacknowledged.get()
        reply = next(replies, None)
        if isinstance(reply, Failure):
            raise reply.error
        if reply is None:
            # It is not up yet, or gone: an answer that was lost would have ended the connection.
            if time.monotonic() > message.until:
                raise DeadlineError(f"node {message.send.target} did not take a message in time")
            time.sleep(RETRY_S)
            self._leaving.put(message)


def _key(node: int) -> str:
    return f"edvit-replay/{node}"


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def main() -> None:
    settings = Settings.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        report = ReplayNode(settings).run()
    except Exception as error:
        # What is no EdvitError is a defect; its line is all that anyone can see of it from outside.
        kind = "" if isinstance(error, EdvitError) else f"{type(error).__name__}: "
        print(f"{kind}{error}", file=sys.stderr, flush=True)
        os._exit(1)
    print(json.dumps(asdict(report)), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
