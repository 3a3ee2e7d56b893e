"""A gateway that takes deploys, with its HTTP API, over devices of an in-memory fleet."""

from __future__ import annotations

import contextlib

from edvit.runtime.deploy.deploys import Deploys
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.lease import Lease
from edvit.runtime.http.server import HttpServer, bind


class ServedInMemory:
    """What `edvit.runtime.service.serve_on` makes, over a `MemoryFleet`.

    Attributes:
        deploys: the deploys of the gateway.
        url: of its HTTP API.
    """

    def __init__(self, stack, fleet, bundle, **options):
        self._node = fleet.node()
        self._options = {"deadline_s": 60.0, **options}
        self.lease = Lease(bundle.manifest.plan.fleet.name, bundle.digest, self._node)
        stack.callback(self.lease.close)
        self.deploys = Deploys(bundle, self.lease, self._make_gateway)
        stack.callback(self.deploys.close)
        self.url = stack.enter_context(HttpServer(self.deploys.switch, bind("127.0.0.1", 0))).url

    @property
    def gateway(self):
        return self.deploys.switch.current.gateway

    def _make_gateway(self, bundle, beside, away):
        return Gateway(bundle, self._node, lease=self.lease, beside=beside, away=away, **self._options)


@contextlib.contextmanager
def served_in_memory(fleet, bundle, **options):
    with contextlib.ExitStack() as stack:
        yield ServedInMemory(stack, fleet, bundle, **options)
