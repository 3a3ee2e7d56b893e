"""A gateway and devices with keys, over TLS on loopback, and the means to attack them."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta, timezone

import zenoh

from edvit.runtime.device.agent import DeviceAgent
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.keys import authority, membership
from edvit.runtime.wire.mutual_tls import MutualTls, device_tls
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from free_port import free_port

NOW = datetime.now(timezone.utc)


def join(gateway_keys, device_keys, name, *, now=NOW, days=730):
    """What `keys request | keys issue | keys accept` do; returns the device's side of the wire."""
    pem, _ = membership.request(device_keys, name)
    membership.accept(device_keys, authority.issue(gateway_keys, pem, now, days).certificates)
    return device_tls(membership.home(device_keys, name), name)


class KeyedFleet:
    """Everything that is started is closed with the block.

    Attributes:
        keys: the gateway's keys folder.
        endpoint: where the gateway listens.
    """

    def __init__(self, stack, folder, bundle=None):
        self._stack = stack
        self.folder = folder
        self.bundle = bundle
        self.keys = folder / "gateway"
        self.endpoint = f"tls/127.0.0.1:{free_port()}"
        authority.make_authority(self.keys, ["127.0.0.1"], NOW)

    def join(self, name, **options):
        return join(self.keys, self.folder / name, name, **options)

    def expired(self, name):
        return self.join(name, now=NOW - timedelta(days=10), days=1)

    def gateway_tls(self, fleet="local"):
        return authority.gateway_tls(self.keys, fleet, NOW)

    def transport(self, tls=None, endpoint=None):
        """The gateway's session."""
        return self.closing(
            ZenohTransport(listen=[endpoint or self.endpoint], scouting=False, tls=tls or self.gateway_tls())
        )

    def gateway(self, transport):
        return self.closing(Gateway(self.bundle, transport, deadline_s=60.0))

    def leaf(self, tls, endpoint=None):
        """A device's session."""
        return self.closing(ZenohTransport(connect=[endpoint or self.endpoint], scouting=False, tls=tls))

    def device(self, name, tls):
        transport = self.leaf(tls)
        return self.closing(DeviceAgent(name, "local", transport, cache=self.folder / f"{name}-cache"))

    def closing(self, thing):
        self._stack.callback(thing.close)
        return thing

    def knock(self, tls: MutualTls | None, *, endpoint=None, **settings):
        """A stranger's own program: one try to link to the gateway, with what it has. Raises zenoh.ZError."""
        config = zenoh.Config()
        values = {
            "mode": "client",
            "connect/endpoints": [endpoint or self.endpoint],
            "connect/timeout_ms": 3000,
            "connect/exit_on_failure": True,
            "scouting/multicast/enabled": False,
            "transport/link/tls/root_ca_certificate": str(self.keys / "ca.crt"),
        }
        if tls is not None:
            values |= {
                "transport/link/tls/enable_mtls": True,
                "transport/link/tls/connect_certificate": str(tls.certificate),
                "transport/link/tls/connect_private_key": str(tls.key),
            }
        for name, value in (values | settings).items():
            config.insert_json5(name, json.dumps(value))
        return self.closing(zenoh.open(config))


@contextlib.contextmanager
def keyed_fleet(folder, bundle=None):
    with contextlib.ExitStack() as stack:
        yield KeyedFleet(stack, folder, bundle)
