"""One fan-out: the images go out once to each device, and one checked feature per sub-model comes back.

Where a sub-model has a second copy, the device of that is asked as well once the first one is late or has ended.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edvit.errors import EdvitError, WireError, printable
from edvit.runtime.gateway.hedging import LATE_MOST, Hedging
from edvit.runtime.gateway.silence import GivenUpError, Silence
from edvit.runtime.prediction import Float32, UInt8
from edvit.runtime.request import note_wire
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import ImageEncoding, encode_images
from edvit.runtime.wire.messages import InferReply, InferRequest, to_array
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ANY, INFER
from edvit.runtime.wire.transport import Ended, Failure, Replies, Reply

log = logging.getLogger(__name__)

AGAIN_S = 0.05
"""Pause before those are asked once more who ended a request without a word: the network may take a moment to tell of
a key that is newly served, and a query in that moment reaches nobody."""
PUNCTUAL_S = 0.02
"""The transport may end the replies so much before the deadline, seconds."""


class AskEach(Protocol):
    """`Transport.ask_each`."""

    def __call__(
        self, keys: Sequence[str], packet: Packet, *, deadline_s: float, into: Replies | None = None
    ) -> Replies: ...


@dataclass(frozen=True)
class Expected:
    """The device that answers for a sub-model, and the length of its feature."""

    device: str
    feature_dim: int
    copy: str | None = None
    """Another device that holds it and is ready to answer."""


@dataclass
class Gathered:
    """Features and problems that came back before the deadline."""

    asked_at: float = 0.0
    """`time.monotonic()` when the images left."""
    late: bool = False
    """Whether the deadline passed before everything was there."""
    features: dict[int, Float32] = field(default_factory=dict)
    """Feature by sub-model id, each float32 `[batch, feature_dim]`."""
    runs_s: dict[int, float] = field(default_factory=dict)
    """Each sub-model's own run time as its device reports it, seconds."""
    problems: list[EdvitError] = field(default_factory=list)
    asked: dict[str, set[int]] = field(default_factory=dict)
    """Sub-models that each device was asked for."""
    first_asked_at: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` when each device was asked first: one that holds second copies alone may be asked late."""
    last_given_at: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` when the last feature of each device came, of those that gave any."""
    given: dict[str, set[int]] = field(default_factory=dict)
    """Sub-models whose feature each device gave, also where another device had given it before."""
    wrong: set[str] = field(default_factory=set)
    """Devices that gave an answer that was refused."""
    silent: set[str] = field(default_factory=set)
    """Devices that fell silent, and were not waited for until the deadline."""
    ended: set[str] = field(default_factory=set)
    """Devices that ended the request, or died, before the deadline and without all that they were asked for."""


def gather(
    ask_each: AskEach,
    fleet: str,
    bundle: str,
    images: UInt8,
    expected: Mapping[int, Expected],
    *,
    encoding: ImageEncoding,
    deadline_s: float,
    silence: Silence | None = None,
    hedging: Hedging | None = None,
) -> Gathered:
    """Send images to the devices of `expected`; collect features until all are here or nobody is left to wait for.

    Who ends the request without a word is asked once more.

    Args:
        ask_each: `Transport.ask_each`, or what stands for it.
        bundle: digest of the bundle the features must be of.
        images: uint8 `[batch, channels, height, width]`.
        expected: by sub-model id; at least one.
        encoding: of the images on the wire; they are encoded once, for all devices.
        deadline_s: seconds, encoding included, after which the rest is given up.
        silence: is told who is asked and heard, and says who is not to be waited for.
        hedging: says when a copy is asked; None for never.
    """
    until = time.monotonic() + deadline_s
    payload = encode_images(images, encoding)
    gathered = Gathered(asked_at=time.monotonic())
    left_s = until - gathered.asked_at
    if left_s <= 0:
        gathered.late = True
        return gathered
    header = InferRequest(
        shape=images.shape,
        encoding=encoding,
        encoded_bytes=None if encoding == "raw" else len(payload),
        bundle=bundle,
        request=secrets.token_hex(8),
        deadline_s=left_s,
    )
    note_wire(header.request)
    fan_out = _FanOut(
        ask_each,
        fleet=fleet,
        header=header,
        payload=payload,
        expected=expected,
        until=until,
        gathered=gathered,
        silence=silence or Silence(),
        hedging=hedging,
    )
    fan_out.run()
    gathered.late = len(gathered.features) < len(expected) and time.monotonic() > until - PUNCTUAL_S
    return gathered


class _FanOut:
    """One request while it is under way."""

    def __init__(
        self,
        ask_each: AskEach,
        *,
        fleet: str,
        header: InferRequest,
        payload: bytes,
        expected: Mapping[int, Expected],
        until: float,
        gathered: Gathered,
        silence: Silence,
        hedging: Hedging | None,
    ) -> None:
        self._ask_each = ask_each
        self._fleet = fleet
        self._header = header
        self._payload = payload
        self._expected = expected
        self._until = until
        self._gathered = gathered
        self._silence = silence
        self._hedging = hedging
        self._batch = header.shape[0]
        self._first: dict[str, set[int]] = {}
        """What each device is asked for at the beginning; copies are asked later."""
        for submodel, entry in expected.items():
            self._first.setdefault(entry.device, set()).add(submodel)
        self._questions: dict[str, int] = {}
        """Questions that each device has not ended; one that was given up has none."""
        self._late_at: dict[str, float] = {}
        """When each device is late, of those whose copies may be asked then."""
        self._last_chance_at = gathered.asked_at + LATE_MOST * (until - gathered.asked_at)
        """When the copies of a device are asked whatever the budget, unless it has answered other requests since."""
        self._replies: Replies | None = None

    def run(self) -> None:
        for device, submodels in self._first.items():
            self._ask(device, submodels)
        asked_at, replies = self._gathered.asked_at, self._replies
        if replies is None:
            return
        if self._hedging is not None:
            late_s = self._hedging.begin(self._first, self._batch, self._until - asked_at)
            self._late_at = {device: asked_at + seconds for device, seconds in late_s.items()}
        try:
            self._collect(replies)
            if self._ask_speechless_again():
                self._collect(replies)
        finally:
            self._silence.ended(replies)
        self._learn_from_who_was_not_waited_for()

    def _collect(self, replies: Replies) -> None:
        while self._waits() and not replies.over and time.monotonic() <= self._until:
            arrived = replies.take(min([self._until, *self._late_at.values()]))
            if isinstance(arrived, Reply):
                self._take_or_refuse(arrived)
            elif isinstance(arrived, Ended):
                self._ended(arrived.key.rpartition("/")[2])
            elif isinstance(arrived, Failure):
                self._failed(arrived.error)
            self._ask_copies_of_late()

    def _ask_speechless_again(self) -> bool:
        """Ask devices once more that ended the request without a word. Whether there were any."""
        missing = self._expected.keys() - self._gathered.features.keys()
        speechless = {device: self._first[device] & missing for device in self._gathered.ended if device in self._first}
        speechless = {device: submodels for device, submodels in speechless.items() if submodels}
        said = self._gathered.problems or self._gathered.silent
        if not speechless or said or time.monotonic() + AGAIN_S >= self._until:
            return False
        time.sleep(AGAIN_S)
        for device, submodels in speechless.items():
            self._gathered.ended.discard(device)
            self._ask(device, submodels)
        return True

    def _waits(self) -> bool:
        """Whether a feature is missing that a device may still give."""
        missing = self._expected.keys() - self._gathered.features.keys()
        return any(open_ and self._gathered.asked[device] & missing for device, open_ in self._questions.items())

    def _owed(self, device: str) -> set[int]:
        """What a device has not given of what it was asked for at the beginning."""
        return self._first.get(device, set()) - self._gathered.given.get(device, set())

    def _ask(self, device: str, submodels: Iterable[int]) -> None:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            return
        header = self._header.model_copy(update={"submodels": tuple(sorted(submodels)), "deadline_s": left_s})
        key = INFER.key(fleet=self._fleet, submodel=ANY, device=device)
        packet = encode(header, self._payload)
        self._replies = self._ask_each([key], packet, deadline_s=left_s, into=self._replies)
        self._gathered.asked.setdefault(device, set()).update(submodels)
        self._gathered.first_asked_at.setdefault(device, time.monotonic())
        self._questions[device] = self._questions.get(device, 0) + 1
        self._silence.asked([device], self._batch, self._replies)

    # --- copies ----------------------------------------------------------------------------------------

    def _copies(self, device: str) -> dict[str, set[int]]:
        """Who else is to be asked for what is missing of a device, and for which sub-models."""
        found: dict[str, set[int]] = {}
        for submodel in self._first.get(device, set()) - self._gathered.features.keys():
            copy = self._expected[submodel].copy
            if copy is None or copy in self._gathered.silent:
                continue
            if submodel not in self._gathered.asked.get(copy, set()):
                found.setdefault(copy, set()).add(submodel)
        return found

    def _ask_copies_of_late(self) -> None:
        now = time.monotonic()
        for device in [device for device, at in self._late_at.items() if at <= now]:
            del self._late_at[device]
            copies = self._copies(device)
            if not copies or self._hedging is None:
                continue
            last_chance = now >= self._last_chance_at
            hangs = last_chance and not self._silence.heard_since(device, self._gathered.asked_at)
            if self._hedging.may_ask(hangs=hangs):
                for copy, submodels in copies.items():
                    self._ask(copy, submodels)
            elif not last_chance:
                self._late_at[device] = self._last_chance_at

    def _ask_copies_as_ended(self, device: str) -> None:
        """The device gives nothing more, or nothing that can be used."""
        self._late_at.pop(device, None)
        copies = self._copies(device)
        if copies and self._hedging is not None:
            self._hedging.asked_as_ended()
            for copy, submodels in copies.items():
                self._ask(copy, submodels)

    def _learn_from_who_was_not_waited_for(self) -> None:
        if self._hedging is None:
            return
        seconds = time.monotonic() - self._gathered.asked_at
        for device in self._first.keys() - self._gathered.ended - self._gathered.silent - self._gathered.wrong:
            if self._owed(device):
                self._hedging.took(device, self._batch, seconds)

    # --- what comes ------------------------------------------------------------------------------------

    def _ended(self, device: str) -> None:
        if not self._questions.get(device):
            return  # it was given up before
        self._questions[device] -= 1
        owes = self._gathered.asked[device] - self._gathered.given.get(device, set())
        if self._questions[device] == 0 and owes and time.monotonic() < self._until - PUNCTUAL_S:
            self._gathered.ended.add(device)
            self._ask_copies_as_ended(device)

    def _failed(self, error: EdvitError) -> None:
        if not isinstance(error, GivenUpError):
            self._gathered.problems.append(error)
            return
        self._gathered.silent.add(error.device)
        self._questions[error.device] = 0
        self._ask_copies_as_ended(error.device)

    def _take_or_refuse(self, reply: Reply) -> None:
        device = reply.key.rpartition("/")[2]
        owed = self._owed(device)
        try:
            taken = self._take(reply)
        except WireError as error:
            log.warning("refused the answer at %s: %s", printable(reply.key), error)
            self._gathered.problems.append(error)
            self._gathered.wrong.add(device)
            self._ask_copies_as_ended(device)
            return
        if not taken:
            return
        self._silence.heard(device)
        if self._replies is not None and self._gathered.asked[device] <= self._gathered.given[device]:
            self._silence.answered(device, self._replies)
        if owed and not self._owed(device):
            self._late_at.pop(device, None)
            if self._hedging is not None:
                self._hedging.took(device, self._batch, time.monotonic() - self._gathered.asked_at)

    def _take(self, reply: Reply) -> bool:
        """Whether it is an answer that was asked for. Raises WireError for one that is malformed, or another's."""
        place, gathered = INFER.parts(reply.key), self._gathered
        asked = gathered.asked.get(place["device"], set())
        submodel = next((one for one in asked if str(one) == place["submodel"]), None)
        if submodel is None:
            log.debug("left the answer at %s: it is not asked for there", printable(reply.key))
            return False
        # The size of the feature is known, so a larger payload is refused before it is read.
        feature_dim = self._expected[submodel].feature_dim
        header = decode(InferReply, reply.packet, max_payload=feature_dim * self._batch * 4)
        if header.request != self._header.request:
            raise WireError("an answer is to another request")
        if (place["submodel"], place["device"]) != (str(header.submodel), header.device):
            raise WireError("the sub-model or device of an answer is not that of its key")
        if header.shape != (self._batch, feature_dim):
            raise WireError(f"features are {list(header.shape)} where {[self._batch, feature_dim]} was expected")
        given = gathered.given.setdefault(header.device, set())
        if submodel in given:
            raise WireError(f"sub-model {submodel} answered twice")
        feature = to_array(header, reply.packet.payload)
        if not np.isfinite(feature).all():
            raise WireError("features have values that are not finite")
        given.add(submodel)
        gathered.last_given_at[header.device] = time.monotonic()
        if submodel not in gathered.features:  # the first of two copies to answer is the one that counts
            gathered.features[submodel] = feature
            gathered.runs_s[submodel] = header.seconds
        return True
