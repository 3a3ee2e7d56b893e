"""One fan-out: the images go out once to each device, and one checked feature per sub-model comes back."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edvit.errors import EdvitError, WireError
from edvit.runtime.prediction import Float32, UInt8
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import ImageEncoding, encode_images
from edvit.runtime.wire.messages import InferReply, InferRequest, to_array
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ANY, INFER
from edvit.runtime.wire.transport import Failure, Replies, Reply

log = logging.getLogger(__name__)


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

    features: dict[int, Float32] = field(default_factory=dict)
    """Feature by sub-model id, each float32 `[batch, feature_dim]`."""
    runs_s: dict[int, float] = field(default_factory=dict)
    """Each sub-model's own run time as its device reports it, seconds."""
    problems: list[EdvitError] = field(default_factory=list)


def gather(
    ask_each: AskEach,
    fleet: str,
    bundle: str,
    images: UInt8,
    expected: Mapping[int, Expected],
    *,
    encoding: ImageEncoding,
    deadline_s: float,
) -> Gathered:
    """Send images to the devices of `expected`; collect features until all are here or nobody is left to wait for.

    Args:
        ask_each: `Transport.ask_each`, or what stands for it.
        bundle: digest of the bundle the features must be of.
        images: uint8 `[batch, channels, height, width]`.
        expected: by sub-model id.
        encoding: of the images on the wire; they are encoded once, for all devices.
        deadline_s: seconds, once the images are encoded, after which the rest is given up.
    """
    payload = encode_images(images, encoding)
    until = time.monotonic() + deadline_s
    header = InferRequest(
        shape=images.shape,
        encoding=encoding,
        encoded_bytes=None if encoding == "raw" else len(payload),
        bundle=bundle,
        deadline_s=deadline_s,
    )
    devices = dict.fromkeys(entry.device for entry in expected.values())
    keys = [INFER.key(fleet=fleet, submodel=ANY, device=device) for device in devices]
    gathered = Gathered()
    for reply in ask_each(keys, encode(header, payload), deadline_s=deadline_s):
        if isinstance(reply, Failure):
            gathered.problems.append(reply.error)
        else:
            try:
                _take(reply, expected, len(images), gathered)
            except WireError as error:
                log.warning("refused the answer at %s: %s", reply.key, error)
                gathered.problems.append(error)
        if len(gathered.features) == len(expected) or time.monotonic() > until:
            break
    return gathered


def _take(reply: Reply, expected: Mapping[int, Expected], batch: int, gathered: Gathered) -> None:
    """Raises WireError for an answer that is malformed, or not the one that was asked for."""
    # The size of every expected feature is known, so a larger payload is refused before it is read.
    largest = max(entry.feature_dim for entry in expected.values()) * batch * 4
    header = decode(InferReply, reply.packet, max_payload=largest)
    place = INFER.parts(reply.key)
    entry = expected.get(header.submodel)
    if entry is None or (place["submodel"], place["device"]) != (str(header.submodel), header.device):
        raise WireError("the sub-model or device of an answer is not the one that was asked")
    if header.device != entry.device:
        raise WireError(f"sub-model {header.submodel} is planned on {entry.device}, not on {header.device}")
    if header.shape != (batch, entry.feature_dim):
        raise WireError(f"features are {list(header.shape)} where {[batch, entry.feature_dim]} was expected")
    if header.submodel in gathered.features:
        raise WireError(f"sub-model {header.submodel} answered twice")
    feature = to_array(header, reply.packet.payload)
    if not np.isfinite(feature).all():
        raise WireError("features have values that are not finite")
    gathered.features[header.submodel] = feature
    gathered.runs_s[header.submodel] = header.seconds
