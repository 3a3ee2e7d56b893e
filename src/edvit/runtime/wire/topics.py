"""The table of everything that is asked over the wire: key, request and reply of each topic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from edvit.errors import WireError
from edvit.runtime.wire.messages import (
    BlobReply,
    BlobRequest,
    DeviceInfo,
    Header,
    InferReply,
    InferRequest,
    InfoRequest,
    LoadRequest,
    RefuseReply,
    RefuseRequest,
)

Req = TypeVar("Req", bound=Header)
Rep = TypeVar("Rep", bound=Header)

ANY = "*"


@dataclass(frozen=True)
class Topic(Generic[Req, Rep]):
    """One kind of question: where it is asked, with what, and what comes back."""

    pattern: str
    request: type[Req]
    reply: type[Rep]

    def key(self, **parts: str | int) -> str:
        """The key with its parts filled in; `ANY` for a part matches every value."""
        return self.pattern.format(**parts)

    def parts(self, key: str) -> dict[str, str]:
        """The parts of a key. Raises WireError if it is not a key of this topic."""
        match = self._regex.fullmatch(key)
        if match is None:
            raise WireError("a message came under a key that is not its topic's")
        return match.groupdict()

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.pattern)))


INFO = Topic("edvit/{fleet}/devices/{device}", InfoRequest, DeviceInfo)
LOAD = Topic("edvit/{fleet}/devices/{device}/load", LoadRequest, DeviceInfo)
REFUSE = Topic("edvit/{fleet}/devices/{device}/refuse", RefuseRequest, RefuseReply)
INFER = Topic("edvit/{fleet}/infer/{submodel}/{device}", InferRequest, InferReply)
"""One query for `infer/*/*` carries the input to each device once; a device answers once per sub-model."""
BLOB = Topic("edvit/{fleet}/blobs/{sha256}", BlobRequest, BlobReply)

ALIVE = Topic("edvit/{fleet}/devices/{device}/alive/{instance}", Header, Header)
"""A liveliness token, never asked. The instance tells a restarted device from the one it replaces."""
