"""The run-time world never loads the build world, and a device loads no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILD_WORLD = {"torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib"}
NOT_ON_A_DEVICE = BUILD_WORLD | {"rich", "fastapi", "uvicorn", "httpx", "starlette", "PIL", "yaml"}

DEVICE_MODULES = [
    "edvit.cli.device",
    "edvit.runtime.device.model_cache",
    "edvit.runtime.device.agent",
    "edvit.runtime.engine.submodel",
    "edvit.runtime.wire.messages",
    "edvit.runtime.prediction",
    "edvit.runtime.wire.topics",
    "edvit.runtime.wire.transport",
    "edvit.runtime.wire.zenoh_transport",
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


def test_the_command_of_a_device_imports_no_other_command():
    code = (
        "import sys; from edvit.cli import main; sys.argv = ['edvit', 'device', '--name', 'x y']\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    code, *modules = done.stdout.split()
    assert code == "2"
    assert {name for name in modules if name.startswith("edvit.cli.")} <= {
        "edvit.cli.device",
        "edvit.cli.console",
        "edvit.cli.console.log_options",
        "edvit.cli.console.output",
    }
    assert not {name.partition(".")[0] for name in modules} & NOT_ON_A_DEVICE


@pytest.mark.parametrize(
    "module",
    [
        "edvit.runtime.gateway.gateway",
        "edvit.runtime.gateway.reconcile",
        "edvit.runtime.gateway.gather",
        "edvit.runtime.http.app",
        "edvit.runtime.local",
        "edvit.runtime.http.client",
        "edvit.inputs.datasets",
        "edvit.runtime.evaluation",
    ],
)
def test_the_gateway_loads_nothing_of_the_build_world(module):
    assert not loaded_by(module) & BUILD_WORLD


def test_the_transport_knows_no_message():
    code = "import sys, edvit.runtime.wire.zenoh_transport; print('edvit.runtime.wire.messages' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
