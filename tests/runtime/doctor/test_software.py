"""Libraries that do not load, kill their process or compute something else, in real processes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edvit.runtime.doctor import selftest, software


def test_the_requirements_are_those_of_the_package():
    found = {(one.distribution, one.extra): one for one in software.requirements()}
    assert found["onnxruntime", None].oldest >= (1, 23)
    assert found["pillow", None].module == "PIL"
    assert {("cryptography", "keys"), ("fastapi", "serve")} <= found.keys()
    assert ("cryptography", None) not in found


def test_what_an_extra_needs_is_the_extras_alone_whatever_else_its_line_says(monkeypatch):
    lines = [
        "numpy>=1.24",
        "grafana-foundation-sdk>=1769699998!10.1.0; python_version >= '3.11' and extra == 'dev'",
        'ray>=2.40 ; extra == "ray" and sys_platform != "win32"',
    ]
    monkeypatch.setattr(software.metadata, "requires", lambda name: lines)
    found = [(one.distribution, one.extra) for one in software.requirements()]
    assert found == [("numpy", None), ("grafana-foundation-sdk", "dev"), ("ray", "ray")]


def test_everything_that_is_needed_is_here():
    checks = software.check_libraries()
    assert [check for check in checks if check.state != "good"] == []
    assert {"eclipse-zenoh", "onnxruntime", "numpy", "pillow", "extras"} <= {check.name for check in checks}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules of the processes that the doctor starts, by name and code."""

    def write(**code):
        for name, text in code.items():
            (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return write


def test_a_library_that_kills_its_process_is_named_and_the_rest_is_looked_at(modules):
    die = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    modules(dies=die, breaks="raise ImportError('no\\nbody')", ends="raise SystemExit(3)", fine="")
    assert software.load_problems(["fine", "dies", "breaks", "ends", "json"]) == {
        "dies": "ended by SIGILL",
        "breaks": "ImportError: no body",
        "ends": "does not load",
    }


def test_what_is_missing_or_too_old_is_bad(monkeypatch):
    monkeypatch.setattr(software.metadata, "requires", lambda _: ["no-such-thing>=1", "numpy>=99.5"])
    missing, old, _ = software.check_libraries()
    assert (missing.state, missing.advice) == ("bad", 'pip install "no-such-thing>=1"')
    assert (old.state, old.advice) == ("bad", 'pip install "numpy>=99.5"')


def test_the_engine_is_as_accurate_as_numpy():
    assert software.check_engine().state == "good"
    assert selftest.largest_difference() <= selftest.TOLERANCE


def test_an_engine_that_kills_its_process_is_bad(modules):
    modules(onnxruntime="import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    check = software.check_engine()
    assert (check.state, check.says) == ("bad", "ended by SIGILL")
    assert "another processor" in check.advice


WRONG = """
import numpy as np
class SessionOptions: pass
class InferenceSession:
    def __init__(self, *args, **options): pass
    def run(self, names, given):
        x = given["x"]
        return [np.full((64, 33), 1 / 33), np.zeros(x.shape, np.uint8), np.float32(1e9), np.uint8(0), {yq}]
"""


@pytest.mark.parametrize(
    ("yq", "says"),
    [("np.ones((64, 33), np.int32)", "integers differ"), ("np.zeros((64, 33), np.int32)", "differs from numpy by")],
)
def test_an_engine_that_computes_something_else_is_bad(modules, yq, says):
    modules(onnxruntime=WRONG.format(yq=yq))
    check = software.check_engine()
    assert check.state == "bad"
    assert says in check.says


def test_the_model_is_what_its_description_says():
    model = onnx.load_from_string(selftest.MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == [
        "MatMul",
        "Add",
        "Softmax",
        "DynamicQuantizeLinear",
        "MatMulInteger",
    ]
    types = [value.type.tensor_type.elem_type for value in model.graph.output]
    assert types == [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in ("f4", "u1", "f4", "u1", "i4")]
    assert TensorProto.FLOAT in types
