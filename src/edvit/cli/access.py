"""The options by which a command asks a gateway that wants a token or has a certificate of its own authority."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from edvit.runtime.http.client import Client


@Parameter(name="*")
@dataclass(frozen=True)
class AccessOptions:
    """The token has no option of its own: others on the machine see what is typed. It is in `EDVIT_TOKEN`."""

    ca: Annotated[
        Path | None,
        Parameter(
            env_var="EDVIT_CA",
            help="Certificate of the authority that the gateway's is of (ca.crt of its keys folder). The gateway's "
            "token is taken from the environment variable EDVIT_TOKEN.",
        ),
    ] = None

    def client(self, url: str) -> Client:
        """A client of the gateway at `url`. Raises what `Client` raises."""
        from edvit.runtime.http.client import Client

        return Client(url, token=os.environ.get("EDVIT_TOKEN") or None, ca=self.ca if self.ca != Path() else None)
