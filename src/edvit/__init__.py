"""edvit: split a Vision Transformer into small class-specific models that run in parallel on edge devices.

    bundle = edvit.build(data="digits", fleet=local_fleet(5), out="digits-bundle")          # needs edvit[build]
    bundle = edvit.read_bundle("digits-bundle")
    edvit.LocalPredictor(bundle).predict("photo.jpg").label                                 # one process
    edvit.Gateway(bundle, edvit.ZenohTransport(listen=["tcp/127.0.0.1:7447"]))                # devices

Importing the package imports none of its parts: a device pays for what it uses alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edvit.api import build
    from edvit.bundle import Bundle, read_bundle
    from edvit.errors import EdvitError
    from edvit.fleet import Fleet, load_fleet, local_fleet
    from edvit.runtime.gateway.gateway import Gateway
    from edvit.runtime.prediction import Answer, Prediction
    from edvit.runtime.predictor import LocalPredictor
    from edvit.runtime.wire.zenoh_transport import ZenohTransport

__version__ = "0.1.0"

_WHERE = {
    "Answer": "edvit.runtime.prediction",
    "Bundle": "edvit.bundle",
    "EdvitError": "edvit.errors",
    "Fleet": "edvit.fleet",
    "Gateway": "edvit.runtime.gateway.gateway",
    "LocalPredictor": "edvit.runtime.predictor",
    "Prediction": "edvit.runtime.prediction",
    "ZenohTransport": "edvit.runtime.wire.zenoh_transport",
    "build": "edvit.api",
    "load_fleet": "edvit.fleet",
    "local_fleet": "edvit.fleet",
    "read_bundle": "edvit.bundle",
}

__all__ = [
    "Answer",
    "Bundle",
    "EdvitError",
    "Fleet",
    "Gateway",
    "LocalPredictor",
    "Prediction",
    "ZenohTransport",
    "__version__",
    "build",
    "load_fleet",
    "local_fleet",
    "read_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'edvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
