"""One fan-out: the images go out once to each device, and one checked feature per sub-model comes back."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edvit.errors import EdvitError, WireError, printable
from edvit.runtime.gateway.silence import GivenUpError, Silence
from edvit.runtime.prediction import Float32, UInt8
from edvit.runtime.request import note_wire
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import ImageEncoding, encode_images
from edvit.runtime.wire.messages import InferReply, InferRequest, to_array
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ANY, INFER
from edvit.runtime.wire.transport import Replies, Reply

log = logging.getLogger(__name__)

PUNCTUAL_S = 0.02
"""The transport may end the replies so much before the deadline, seconds."""


class AskEach(Protocol):
    """`Transport.ask_each`."""

    def __call__(self, keys: Sequence[str], packet: Packet, *, deadline_s: float) -> Replies: ...


@dataclass(frozen=True)
class Expected:
    """The device that answers for a sub-model, and the length of its feature."""

    device: str
    feature_dim: int


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
    wrong: set[str] = field(default_factory=set)
    """Devices that gave an answer that was refused."""
    silent: set[str] = field(default_factory=set)
    """Devices that fell silent, and were not waited for until the deadline."""


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
) -> Gathered:
    """Send images to the devices of `expected`; collect features until all are here or nobody is left to wait for.

    Args:
        ask_each: `Transport.ask_each`, or what stands for it.
        bundle: digest of the bundle the features must be of.
        images: uint8 `[batch, channels, height, width]`.
        expected: by sub-model id.
        encoding: of the images on the wire; they are encoded once, for all devices.
        deadline_s: seconds, encoding included, after which the rest is given up.
        silence: is told who is asked and heard, and says who is not to be waited for.
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
    devices = dict.fromkeys(entry.device for entry in expected.values())
    keys = [INFER.key(fleet=fleet, submodel=ANY, device=device) for device in devices]
    replies = ask_each(keys, encode(header, payload), deadline_s=left_s)
    silence = silence or Silence()
    silence.asked(devices, len(images), replies)
    try:
        for reply in replies:
            if isinstance(reply, Reply):
                _take_or_refuse(reply, header, expected, gathered, silence)
            elif isinstance(reply.error, GivenUpError):
                gathered.silent.add(reply.error.device)
            else:
                gathered.problems.append(reply.error)
            missing = {entry.device for submodel, entry in expected.items() if submodel not in gathered.features}
            if missing <= gathered.silent or time.monotonic() > until:
                break
    finally:
        silence.ended(replies)
    gathered.late = len(gathered.features) < len(expected) and time.monotonic() > until - PUNCTUAL_S
    return gathered


def _take_or_refuse(
    reply: Reply, asked: InferRequest, expected: Mapping[int, Expected], gathered: Gathered, silence: Silence
) -> None:
    device = reply.key.rpartition("/")[2]
    before = len(gathered.features)
    try:
        _take(reply, asked, expected, gathered)
    except WireError as error:
        log.warning("refused the answer at %s: %s", printable(reply.key), error)
        gathered.problems.append(error)
        gathered.wrong.add(device)
    if len(gathered.features) > before:
        silence.heard(device)


def _take(reply: Reply, asked: InferRequest, expected: Mapping[int, Expected], gathered: Gathered) -> None:
    """Raises WireError for an answer that is malformed, or not the one that was asked for."""
    place = INFER.parts(reply.key)
    entry = next((entry for submodel, entry in expected.items() if str(submodel) == place["submodel"]), None)
    if entry is None or place["device"] != entry.device:
        # A device answers with everything it holds, also with what another one is asked for just now.
        log.debug("left the answer at %s: it is not asked for there", printable(reply.key))
        return
    # The size of the feature is known, so a larger payload is refused before it is read.
    batch = asked.shape[0]
    header = decode(InferReply, reply.packet, max_payload=entry.feature_dim * batch * 4)
    if header.request != asked.request:
        raise WireError("an answer is to another request")
    if (place["submodel"], place["device"]) != (str(header.submodel), header.device):
        raise WireError("the sub-model or device of an answer is not that of its key")
    if header.shape != (batch, entry.feature_dim):
        raise WireError(f"features are {list(header.shape)} where {[batch, entry.feature_dim]} was expected")
    if header.submodel in gathered.features:
        raise WireError(f"sub-model {header.submodel} answered twice")
    feature = to_array(header, reply.packet.payload)
    if not np.isfinite(feature).all():
        raise WireError("features have values that are not finite")
    gathered.features[header.submodel] = feature
    gathered.runs_s[header.submodel] = header.seconds
