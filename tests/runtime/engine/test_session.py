from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.errors import ModelError
from edvit.runtime.engine.four_bits import pack, unpack
from edvit.runtime.engine.session import OLDEST, open_session, why_not_loaded
from tiny_bundle import pack_file, quantise, write_fusion, write_submodel


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def path(request, tmp_path_factory):
    """A sub-model's file for images of 3x16x16."""
    path = tmp_path_factory.mktemp("session") / "submodel.onnx"
    write_submodel(path, 3, 16, seed=0)
    if request.param != "fp32":
        quantise(path)
    if request.param == "int4":
        pack_file(path)
    return path


def some_images(count, seed):
    """Each as bright as it happens to be: the scale of a whole batch is that of its brightest."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, 3, 16, 16)) * rng.random((count, 1, 1, 1))).astype(np.uint8)


def test_an_int8_file_mixes_its_batch_in_onnx_runtime(tmp_path):
    """If this fails, ONNX Runtime has mended it, and batches need no longer be run one by one."""
    path, images = tmp_path / "submodel.onnx", some_images(8, seed=0)
    write_submodel(path, 3, 16, seed=0)
    quantise(path)
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = plain.run(None, {"image": images})[0]
    alone = np.concatenate([plain.run(None, {"image": image[None]})[0] for image in images])
    assert np.abs(batch - alone).max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_its_neighbours(path, count, seed):
    session, images = open_session(path, threads=1), some_images(count, seed)
    (batch,) = session.run(None, {"image": images})
    (alone,) = session.run_one_by_one(["feature"], {"image": images})
    assert batch.shape == alone.shape
    assert batch == pytest.approx(alone, rel=1e-5, abs=1e-5)
    (first,) = session.run(None, {"image": images[:1]})
    assert alone[:1].tobytes() == first.tobytes()


def test_rows_of_several_inputs_stay_together(tmp_path):
    write_fusion(tmp_path / "fusion.onnx", submodels=2, classes=3)
    session = open_session(tmp_path / "fusion.onnx", threads=1)
    features = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    present = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], np.float32)
    inputs = {"features": features, "present": present}
    assert session.run_one_by_one(None, inputs)[0] == pytest.approx(session.run(None, inputs)[0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("version", ["1.22.1", "1.9", "0.99.0"])
def test_an_onnx_runtime_that_is_too_old_is_named_with_the_one_that_is_needed(version):
    said = why_not_loaded(version, RuntimeError("opset 23\nis under development"))
    assert said == f"ONNX Runtime {version} is too old for it, 1.23 is needed: pip install 'onnxruntime>=1.23'"


@pytest.mark.parametrize("version", ["1.23.0", "1.100", "2.0.0rc1", onnxruntime.__version__])
def test_a_new_one_is_not_blamed_for_its_age(version):
    said = why_not_loaded(version, RuntimeError("bad\nfile"))
    assert said == f"ONNX Runtime cannot load it (RuntimeError, in version {version})"


def test_the_package_asks_for_the_same_onnx_runtime():
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"onnxruntime>=([\d.]+)"', project)[1] == ".".join(map(str, OLDEST))


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "submodel.q4"
    write_submodel(path, 3, 16, seed=0)
    quantise(path)
    pack_file(path)
    return path


def test_a_container_answers_as_the_int8_file_in_it_does(packed, tmp_path):
    unpacked = tmp_path / "submodel.onnx"
    with unpacked.open("wb") as file:
        unpack(io.BytesIO(packed.read_bytes()), file)
    images = some_images(5, seed=1)
    found, expected = (open_session(path, threads=1).run(None, {"image": images})[0] for path in (packed, unpacked))
    assert np.array_equal(found, expected)


def test_nothing_stays_open_or_on_the_disk_of_an_unpacked_container(packed):
    before = len(list(Path("/proc/self/fd").iterdir()))
    session = open_session(packed, threads=1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [file.name for file in packed.parent.iterdir()] == [packed.name]
    session.run(None, {"image": some_images(1, seed=0)})


def test_a_damaged_container_is_one_line_that_names_it(packed):
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    with pytest.raises(ModelError, match=r"^submodel\.q4: a damaged model in four bits .* again$"):
        open_session(packed, threads=1)


def test_a_container_of_no_model_is_one_line(tmp_path):
    path = tmp_path / "submodel.q4"
    path.write_bytes(pack(b"no model", []))
    with pytest.raises(ModelError, match=r"^submodel\.q4: ONNX Runtime cannot load it"):
        open_session(path, threads=1)
