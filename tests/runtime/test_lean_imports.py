"""The run-time world never loads the build world, and a device loads no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILD_WORLD = {"torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib"}
NOT_ON_A_DEVICE = BUILD_WORLD | {"rich", "fastapi", "uvicorn", "httpx", "starlette"}

DEVICE_MODULES = [
    "edvit.cli.commands",
    "edvit.cli.device",
    "edvit.runtime.blobs",
    "edvit.runtime.device",
    "edvit.runtime.engine",
    "edvit.runtime.memory_transport",
    "edvit.runtime.messages",
    "edvit.runtime.prediction",
    "edvit.runtime.topics",
    "edvit.runtime.transport",
    "edvit.runtime.zenoh_transport",
]


def loaded_by(*modules):
    """Top-level packages in a fresh interpreter that has imported `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_a_device_loads_no_more_than_it_needs():
    loaded = loaded_by(*DEVICE_MODULES)
    assert "onnxruntime" in loaded
    assert not loaded & NOT_ON_A_DEVICE


@pytest.mark.parametrize(
    "module",
    [
        "edvit.runtime.gateway",
        "edvit.runtime.placement",
        "edvit.runtime.gather",
        "edvit.runtime.http",
        "edvit.runtime.local",
        "edvit.runtime.client",
        "edvit.datasets",
        "edvit.evaluate",
    ],
)
def test_the_gateway_loads_nothing_of_the_build_world(module):
    assert not loaded_by(module) & BUILD_WORLD
