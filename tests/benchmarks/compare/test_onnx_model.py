import numpy as np
import pytest
from benchmarks.compare.onnx_model import OnnxModel

from edvit.errors import ModelError
from onnx_graphs import fusion, plus, too_wide


def test_bytes_in_and_bytes_out(tmp_path):
    model = OnnxModel(plus(tmp_path / "plus.onnx", 1.5, "uint8", 4))
    assert model.input_bytes == 4
    assert np.frombuffer(model.run(bytes([0, 1, 2, 255])), "<f4").tolist() == [1.5, 2.5, 3.5, 256.5]
    model = OnnxModel(plus(tmp_path / "plus.onnx", -1, "float32", 3))
    assert model.input_bytes == 12
    assert np.frombuffer(model.run(np.float32([1, 2, 3]).tobytes()), "<f4").tolist() == [0, 1, 2]


def test_further_inputs_are_ones(tmp_path):
    model = OnnxModel(fusion(tmp_path / "fusion.onnx", 3))
    assert np.frombuffer(model.run(np.float32([1, 2, 3]).tobytes()), "<f4").tolist() == [2, 3, 4]


def test_it_is_timed(tmp_path):
    assert 0 < OnnxModel(plus(tmp_path / "plus.onnx", 1, "uint8", 4)).seconds(runs=3, warm_up=1) < 10


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"plus.onnx: 3 bytes arrived where it takes 4"):
        OnnxModel(plus(tmp_path / "plus.onnx", 1, "uint8", 4)).run(bytes(3))
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad.onnx: ONNX Runtime cannot load it"):
        OnnxModel(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match=r"wide.onnx: it takes tensor\(double\), not bytes or float32"):
        OnnxModel(too_wide(tmp_path / "wide.onnx"))
