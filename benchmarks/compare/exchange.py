"""What a system with N devices does on the network for one image, and how long that takes by formula.

Node 0 is the gateway, node i the i-th device; each hangs on a switch by a full-duplex link of its own. Below, `B(x)` is
`LinkSpec.sending_s`, the seconds for which x bytes keep a link busy, and `D(x)` is `LinkSpec.waiting_s`, the delay and
one more round trip per packet that is expected to be lost. Headers, acknowledgements and the slow start of TCP are not
counted, nor is the time that the processes need to send and receive. Every latency begins with the gateway's work
before it sends, `encode`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compare.links import LinkSpec
from edvit.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """What a node computes before it sends."""

    seconds: float
    """What it takes alone on one thread."""
    model: Path | None = None
    """The ONNX file that does it, where a replay shall really run it."""

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise ConfigError(f"work must take at least 0 s, not {self.seconds:g}")

    def after(self, seconds: float) -> Work:
        """It and something before it, which no ONNX file does."""
        return self if seconds == 0 else Work(seconds + self.seconds)


NOTHING = Work(0.0)


@dataclass(frozen=True)
class EncodedImage:
    """An image as it crosses the network."""

    bytes: int
    encode_s: float
    """Seconds of the gateway, once."""
    decode_s: float
    """Seconds of each device that gets it."""


@dataclass(frozen=True)
class Send:
    """A message of an image; one to the node itself crosses no network."""

    target: int
    step: int
    """The target's step that waits for it."""
    bytes: int
    """The first bytes of what the work gave."""


@dataclass(frozen=True)
class Step:
    """A part of what a node does for each image: wait for messages, work, send.

    The work's input is the messages one after the other, in the order of the nodes that sent them.
    """

    waits: int
    """Messages, one from each of as many nodes."""
    work: Work = NOTHING
    sends: tuple[Send, ...] = ()


Program = tuple[Step, ...]
"""The steps of one node. The gateway's first waits for nothing: the image is there. Its last ends the image."""


@dataclass(frozen=True)
class Prediction:
    """By formula."""

    latency_s: float
    """From the image at the gateway to its scores there, nothing else under way, seconds."""
    images_per_s: float
    """With many images under way: one over the busiest resource's seconds an image. A resource is a node's
    processor, its link to the switch, or its link from there."""


class Exchange(ABC):
    """What a system does for one image."""

    @abstractmethod
    def programs(self) -> tuple[Program, ...]:
        """The program of every node, the gateway first."""

    @abstractmethod
    def latency_s(self, link: LinkSpec) -> float:
        """`Prediction.latency_s`; the formula is the class's."""

    @abstractmethod
    def with_image(self, image: EncodedImage) -> Exchange:
        """The same where the input is an image that is encoded before it is sent, in place of a raw one."""

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.programs()) - 1

    @property
    def wire_bytes(self) -> int:
        """Payload bytes that cross the network for one image, those of every node together."""
        return sum(self.sent_bytes())

    def sent_bytes(self) -> tuple[int, ...]:
        """Payload bytes that each node sends for one image, the gateway first."""
        sent = [0] * len(self.programs())
        for source, send in self._messages():
            sent[source] += send.bytes
        return tuple(sent)

    def received_bytes(self) -> tuple[int, ...]:
        """As `sent_bytes`, received."""
        received = [0] * len(self.programs())
        for _, send in self._messages():
            received[send.target] += send.bytes
        return tuple(received)

    def predicted(self, link: LinkSpec) -> Prediction:
        """Latency by the class's formula; throughput by the busiest resource."""
        computing = [sum(step.work.seconds for step in program) for program in self.programs()]
        sending = [link.sending_s(size) for size in (*self.sent_bytes(), *self.received_bytes())]
        busiest = max(*computing, *sending)
        return Prediction(self.latency_s(link), 1 / busiest if busiest else float("inf"))

    def _messages(self) -> Iterator[tuple[int, Send]]:
        """Those that cross the network, with the node that sends them."""
        for node, program in enumerate(self.programs()):
            yield from ((node, send) for step in program for send in step.sends if send.target != node)


@dataclass(frozen=True)
class FanOut(Exchange):
    """The input goes to every device; each works and sends its feature back; the gateway fuses (ED-ViT, Split-CNN).

    Latency: the larger of the slowest device's `N B(input) + D(input) + work + B(feature) + D(feature)`, which is
    `edvit.plan.cost.communication_s` and its work, and of the quickest device's with `B(all features)` in the place of
    its own (all features share the gateway's link); then the fusion.

    Attributes:
        input_bytes: of one input; each device receives one.
        work: of each device.
        feature_bytes: what each device sends back.
        fusion: the gateway's work. Its input is the features in the order of the devices.
        encode: the gateway's work before it sends.
    """

    input_bytes: int
    work: tuple[Work, ...]
    feature_bytes: tuple[int, ...]
    fusion: Work = NOTHING
    encode: Work = NOTHING

    def __post_init__(self) -> None:
        _check_lengths(self.work, self.feature_bytes, "features")
        _check_sizes(self.input_bytes, *self.feature_bytes)

    def programs(self) -> tuple[Program, ...]:
        count = len(self.work)
        start = Step(0, self.encode, tuple(Send(i, 0, self.input_bytes) for i in range(1, count + 1)))
        devices = [
            (Step(1, work, (Send(0, 1, size),)),) for work, size in zip(self.work, self.feature_bytes, strict=True)
        ]
        return ((start, Step(count, self.fusion)), *devices)

    def latency_s(self, link: LinkSpec) -> float:
        out = len(self.work) * link.sending_s(self.input_bytes) + link.waiting_s(self.input_bytes)
        back = [work.seconds + link.waiting_s(size) for work, size in zip(self.work, self.feature_bytes, strict=True)]
        slowest = max(wait + link.sending_s(size) for wait, size in zip(back, self.feature_bytes, strict=True))
        gathered = max(slowest, min(back) + link.sending_s(sum(self.feature_bytes)))
        return self.encode.seconds + out + gathered + self.fusion.seconds

    def with_image(self, image: EncodedImage) -> FanOut:
        work = tuple(one.after(image.decode_s) for one in self.work)
        return replace(self, input_bytes=image.bytes, work=work, encode=Work(image.encode_s))


@dataclass(frozen=True)
class Chain(Exchange):
    """The input goes to the first device, activations from each to the next, scores to the gateway (PipeEdge).

    Latency: the sum of all work and of `B(x) + D(x)` over all messages.

    Attributes:
        input_bytes: what the first device receives.
        work: of each device.
        output_bytes: what each device sends on; the last one's are the scores.
        encode: the gateway's work before it sends.
    """

    input_bytes: int
    work: tuple[Work, ...]
    output_bytes: tuple[int, ...]
    encode: Work = NOTHING

    def __post_init__(self) -> None:
        _check_lengths(self.work, self.output_bytes, "outputs")
        _check_sizes(self.input_bytes, *self.output_bytes)

    def programs(self) -> tuple[Program, ...]:
        count = len(self.work)
        gateway = (Step(0, self.encode, (Send(1, 0, self.input_bytes),)), Step(1))
        devices = []
        for i, (work, size) in enumerate(zip(self.work, self.output_bytes, strict=True), start=1):
            send = Send(i + 1, 0, size) if i < count else Send(0, 1, size)
            devices.append((Step(1, work, (send,)),))
        return (gateway, *devices)

    def latency_s(self, link: LinkSpec) -> float:
        messages = (self.input_bytes, *self.output_bytes)
        under_way = sum(link.sending_s(size) + link.waiting_s(size) for size in messages)
        return self.encode.seconds + under_way + sum(work.seconds for work in self.work)

    def with_image(self, image: EncodedImage) -> Chain:
        first, *rest = self.work
        work = (first.after(image.decode_s), *rest)
        return replace(self, input_bytes=image.bytes, work=work, encode=Work(image.encode_s))


def alone(work: Work, input_bytes: int, scores_bytes: int) -> Chain:
    """One device that does everything: the input goes out, the scores come back."""
    return Chain(input_bytes, (work,), (scores_bytes,))


@dataclass(frozen=True)
class AllGather(Exchange):
    """The input goes to every device; in every round each works and sends its part to every other (Voltage, ASTRA).

    After the last round a device sends to the gateway alone, what the gateway's work there needs.

    Latency: `N B(input) + D(input)`; for every round its slowest work, and for all but the last one the most that a
    device has to send or to receive, `B((N - 1) part)` or `B(the others' parts)`, with the largest `D(part)`; then
    `B(all results) + D(largest result)` and the gateway's work.

    Attributes:
        input_bytes: of one input; each device receives one.
        work: of each round, each device.
        part_bytes: what each device sends to every other after each round but the last.
        result_bytes: what each device sends to the gateway after the last round; 0 for one that sends nothing.
        finish: the gateway's work. Its input is the results in the order of the devices.
        encode: the gateway's work before it sends.
    """

    input_bytes: int
    work: tuple[tuple[Work, ...], ...]
    part_bytes: tuple[int, ...]
    result_bytes: tuple[int, ...]
    finish: Work = NOTHING
    encode: Work = NOTHING

    def __post_init__(self) -> None:
        if not self.work:
            raise ConfigError("an all-gather exchange needs at least one round")
        for round_ in self.work:
            _check_lengths(round_, self.part_bytes, "parts")
        _check_lengths(self.part_bytes, self.result_bytes, "results")
        _check_sizes(self.input_bytes, *self.part_bytes)
        if min(self.result_bytes) < 0 or not any(self.result_bytes):
            raise ConfigError("a device at least must send a result, and none can have less than 0 bytes")

    def programs(self) -> tuple[Program, ...]:
        count, rounds = len(self.part_bytes), len(self.work)
        everyone = range(1, count + 1)
        start = Step(0, self.encode, tuple(Send(i, 0, self.input_bytes) for i in everyone))
        gateway = (start, Step(sum(size > 0 for size in self.result_bytes), self.finish))
        devices = []
        for part, result, work in zip(self.part_bytes, self.result_bytes, zip(*self.work, strict=True), strict=True):
            steps = []
            for round_, own in enumerate(work):
                if round_ + 1 < rounds:
                    sends = tuple(Send(i, round_ + 1, part) for i in everyone)
                else:
                    sends = (Send(0, 1, result),) if result else ()
                steps.append(Step(count if round_ else 1, own, sends))
            devices.append(tuple(steps))
        return (gateway, *devices)

    def latency_s(self, link: LinkSpec) -> float:
        count, parts, results = len(self.part_bytes), self.part_bytes, self.result_bytes
        out = count * link.sending_s(self.input_bytes) + link.waiting_s(self.input_bytes)
        working = sum(max(work.seconds for work in round_) for round_ in self.work)
        busiest = max(max((count - 1) * part, sum(parts) - part) for part in parts)
        gather = link.sending_s(busiest) + link.waiting_s(max(parts)) if count > 1 else 0.0
        back = link.sending_s(sum(results)) + link.waiting_s(max(results))
        gathers = (len(self.work) - 1) * gather
        return self.encode.seconds + out + working + gathers + back + self.finish.seconds

    def with_image(self, image: EncodedImage) -> AllGather:
        first, *rest = self.work
        work = (tuple(one.after(image.decode_s) for one in first), *rest)
        return replace(self, input_bytes=image.bytes, work=work, encode=Work(image.encode_s))


def _check_lengths(devices: tuple[object, ...], others: tuple[object, ...], name: str) -> None:
    if not devices or len(devices) != len(others):
        raise ConfigError(f"an exchange needs as many {name} as devices, at least one: {len(others)}, {len(devices)}")


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise ConfigError(f"a message has at least 1 byte, not {min(sizes)}")
