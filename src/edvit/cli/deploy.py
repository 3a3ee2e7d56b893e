"""`edvit deploy`: give a running gateway a new bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.cli import PositiveFloat
from edvit.cli.access import AccessOptions

if TYPE_CHECKING:
    from edvit.bundle import Bundle
    from edvit.runtime.http.answers import DeployAnswer
    from edvit.runtime.http.client import Client

POLL_S = 0.2
LOST_S = 10.0
"""Seconds for which the gateway may not say how far it is."""
RATE_PAUSE_S = 5.0
"""Seconds until it is asked again, where the token has asked too often."""


def deploy(
    url: Annotated[str, Parameter(help="Address of a gateway, e.g. http://127.0.0.1:8080.")],
    bundle: Annotated[Path, Parameter(help="Folder that `edvit build` wrote, for the gateway's fleet.")],
    /,
    *,
    timeout_s: Annotated[
        PositiveFloat, Parameter(help="Seconds that devices may take to load the bundle; the old one stays after them.")
    ] = 600.0,
    access: AccessOptions = AccessOptions(),
) -> None:
    """Exchange the bundle that a gateway serves, without losing a request.

    Devices load the new sub-models beside the old ones; the gateway switches when all of them have answered. Whatever
    fails before that leaves the old bundle. The token needs the scope operate.
    """
    from edvit.bundle import read_bundle
    from edvit.runtime.deploy.transfer import body_of, files_of, head_of, size_of

    new = read_bundle(bundle)
    head = head_of(new)
    size = size_of(new.manifest)
    with access.client(url) as client:
        found = client.deploy(head, len(head), timeout_s=timeout_s, check=True)
        if found.serving == new.digest:
            print(f"the gateway serves this bundle already ({new.digest[:12]}): nothing to do", flush=True)
            return
        begun = client.deploy(body_of(new), len(head) + size, timeout_s=timeout_s)
        print(f"sent: {size / 1e6:,.1f} MB in {len(files_of(new.manifest))} files", flush=True)
        follow(client, begun, new)


def follow(client: Client, answer: DeployAnswer, bundle: Bundle) -> None:
    """Print each step of a deploy until its end. Raises why it has failed."""
    from edvit.errors import DeployError, error_from

    identity, told = answer.id, 0
    while True:
        for step in answer.steps[told:]:
            print(step, flush=True)
        told = len(answer.steps)
        if answer.state == "failed" and answer.error is not None:
            raise error_from(answer.error.code, f"{answer.error.message}; the old bundle stays")
        if answer.state != "under-way":
            return
        time.sleep(POLL_S)
        answer = state(client)
        if answer.id != identity:
            if answer.serving == bundle.digest:
                print("the gateway has started again, with the new bundle", flush=True)
                return
            raise DeployError("the gateway has started again, with the old bundle: deploy again")


def state(client: Client) -> DeployAnswer:
    """How far the gateway is; it may be too busy to say so, or start again, for `LOST_S`."""
    from edvit.errors import RateLimitError, ServiceError

    until = time.monotonic() + LOST_S
    while True:
        try:
            return client.deploy_state()
        except RateLimitError:
            until += RATE_PAUSE_S
            time.sleep(RATE_PAUSE_S)
        except ServiceError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)
