"""The table of everything that is asked over the wire: the keys of each topic. docs/wire.md has its messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from edvit.errors import WireError

ANY = "*"


@dataclass(frozen=True)
class Topic:
    """One kind of question, by the keys that it is asked at."""

    pattern: str

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


INFO = Topic("edvit/{fleet}/devices/{device}")
LOAD = Topic("edvit/{fleet}/devices/{device}/load")
REFUSE = Topic("edvit/{fleet}/devices/{device}/refuse")
INFER = Topic("edvit/{fleet}/infer/{submodel}/{device}")
"""One query for `infer/*/*` carries the input to each device once; a device answers once per sub-model."""
BLOB = Topic("edvit/{fleet}/blobs/{sha256}")

ALIVE = Topic("edvit/{fleet}/devices/{device}/alive/{instance}")
"""A liveliness token, never asked. The instance tells a restarted device from the one it replaces."""

GATEWAY = Topic("edvit/{fleet}/gateways/{instance}")
GATEWAY_ALIVE = Topic("edvit/{fleet}/gateways/{instance}/alive")
"""A liveliness token, as that of a device: devices tell by it whether there is a gateway."""
