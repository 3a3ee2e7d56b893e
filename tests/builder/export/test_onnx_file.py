from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from edvit.builder.export import onnx_file as export
from edvit.builder.export.onnx_file import (
    FEWEST_HALVED,
    TOLERANCE,
    export_fusion,
    export_submodel,
    pack_submodel,
    quantise_submodel,
)
from edvit.builder.train.fusion import Fusion
from edvit.builder.vit import backbone, importance, surgery
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import BuildError
from edvit.plan.cost import model_cost
from edvit.runtime.engine.four_bits import unpack
from edvit.runtime.engine.session import open_session
from edvit.shape.image import ImageSize
from edvit.shape.vit import pruned_widths
from vit_variants import images, make

torch.set_num_threads(1)
VARIANTS = ("plain", "layer_scale", "qk_norm", "reg_tokens", "avg_pool", "rms_norm")


def cut(variant):
    """A pruned sub-model as it is exported: normalisation, no head."""
    model = make(variant)
    base = backbone.describe(model)
    scores = importance.score(model, images(), criterion="magnitude")
    pruned = surgery.prune(model, surgery.select(scores, base, pruned_widths(base.widths, 1, "dims")))
    return FeatureExtractor(pruned, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()


def pixels(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a variant once."""
    folder = tmp_path_factory.mktemp("export")

    def of(variant):
        path = folder / f"{variant}.onnx"
        if not path.exists():
            export_submodel(cut(variant), pixels(4), path)
        return path

    return of


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_equals_pytorch_at_any_batch(exported, variant):
    extractor = cut(variant)
    for count in (1, 2, 7):
        x = pixels(count, seed=count)
        with torch.no_grad():
            expected = extractor(x).numpy()
        found = run(exported(variant), image=x)
        assert found.dtype == np.float32
        assert found.shape == expected.shape == (count, backbone.describe(extractor.model).feature_dim)
        assert np.abs(found - expected).max() <= 1e-4


def test_the_input_is_pixels_and_the_batch_is_free(exported):
    session = onnxruntime.InferenceSession(str(exported("plain")), providers=["CPUExecutionProvider"])
    (image,), (feature,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [3, 8, 8])
    assert (feature.name, feature.type, feature.shape[1:]) == ("feature", "tensor(float)", [16])
    assert isinstance(image.shape[0], str)
    assert isinstance(feature.shape[0], str)


def test_a_file_is_valid_and_holds_nothing_of_the_machine(exported):
    path = exported("plain")
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert not model.doc_string
    assert not model.metadata_props
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props
    data = path.read_bytes()
    for text in (str(Path.cwd()), str(Path.home()), sys.prefix, ".py", "site-packages", "Traceback"):
        assert text.encode() not in data


AGAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_onnx_file import cut, pixels
from edvit.builder.export.onnx_file import export_submodel
export_submodel(cut("plain"), pixels(4), Path(sys.argv[2]))
"""


def test_the_same_model_is_the_same_bytes(exported, tmp_path):
    here = str(Path(__file__).parent)
    again = tmp_path / "other-name.onnx"
    done = subprocess.run([sys.executable, "-c", AGAIN, here, str(again)], env=_environment(), check=False)
    assert done.returncode == 0
    assert again.read_bytes() == exported("plain").read_bytes()


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}


def random_fusion():
    torch.manual_seed(0)
    fusion = Fusion((4, 6), hidden=8, classes=5)
    with torch.no_grad():
        fusion.stand_in.normal_()
        fusion.mean.normal_()
    return fusion


def test_a_fusion_equals_pytorch_whoever_is_present(tmp_path):
    fusion = random_fusion()
    export_fusion(fusion, torch.randn(4, 10), tmp_path / "fusion.onnx")
    assert not fusion.training, "dropout must not be in the file"
    generator = torch.Generator().manual_seed(1)
    for count in (1, 5):
        features = torch.randn(count, 10, generator=generator)
        for mask in ((1, 1), (0, 1), (1, 0), (0, 0)):
            present = torch.tensor([mask] * count, dtype=torch.float32)
            absent = features.clone()
            absent[:, torch.repeat_interleave(present[0] == 0, torch.tensor([4, 6]))] = float("nan")
            with torch.no_grad():
                expected = fusion(features, present).numpy()
            found = run(tmp_path / "fusion.onnx", features=absent, present=present)
            assert np.abs(found - expected).max() <= 1e-4


class Drifting(nn.Module):
    """Exports as pixels times `scale` and runs `by` more: what a defect of the exporter would look like."""

    def __init__(self, by, scale=1.0):
        super().__init__()
        self.by, self.scale = by, scale

    def forward(self, image):
        mean = self.scale * image.float().mean(dim=(2, 3))
        return mean + (0.0 if torch.compiler.is_exporting() else self.by)


def export_drifting(path, by, **options):
    image = torch.ones(2, 3, 8, 8, dtype=torch.uint8)
    export.export_module(Drifting(by, **options), (image,), ["image"], "feature", path)


def test_a_file_that_differs_is_not_let_through(tmp_path):
    export_drifting(tmp_path / "fine.onnx", TOLERANCE / 10)
    said = (
        r"bad\.onnx: ONNX Runtime differs from PyTorch by 0\.01, in values of up to 1; not written: try other versions"
    )
    with pytest.raises(BuildError, match=said) as caught:
        export_drifting(tmp_path / "bad.onnx", 0.01)
    assert "\n" not in str(caught.value)


def test_a_difference_is_seen_in_proportion_to_the_output(tmp_path):
    """Features of a ViT reach 12 and more, where float32 alone rounds by more than 1e-4."""
    export_drifting(tmp_path / "large.onnx", 5 * TOLERANCE, scale=12.0)
    with pytest.raises(BuildError, match="values of up to 12"):
        export_drifting(tmp_path / "large.onnx", 20 * TOLERANCE, scale=12.0)
    with pytest.raises(BuildError, match="differs"):  # small ones are no reason to ask for more than float32 gives
        export_drifting(tmp_path / "small.onnx", 2 * TOLERANCE, scale=0.01)


def test_an_infinite_output_is_not_let_through(tmp_path):
    with pytest.raises(BuildError, match="differs from PyTorch by inf"):
        export_drifting(tmp_path / "infinite.onnx", float("inf"))


def test_nan_does_not_pass_for_equal(tmp_path):
    extractor = cut("plain")
    with torch.no_grad():
        extractor.model.norm.weight[0] = float("nan")
    with pytest.raises(BuildError, match="differs"):
        export_submodel(extractor, pixels(2), tmp_path / "nan.onnx")


@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_keeps_features_close(exported, tmp_path, variant):
    path = Path(shutil.copy(exported(variant), tmp_path / "submodel.onnx"))
    before, size = run(path, image=pixels(6)), path.stat().st_size
    error = quantise_submodel(path, pixels(6))
    after = np.concatenate([run(path, image=image[None]) for image in pixels(6)])  # as a device runs it
    moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert error == pytest.approx(float(moved.mean()), rel=1e-4)
    assert 0 < error < 0.15
    kinds = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer if len(tensor.dims) == 2}
    assert TensorProto.INT8 in kinds
    assert path.stat().st_size != size
    assert [file.name for file in tmp_path.iterdir()] == ["submodel.onnx"]
    assert run(path, image=pixels(1)).shape == (1, before.shape[1]), "any batch"


def test_int8_stores_other_constants_in_two_bytes(exported, tmp_path):
    path = Path(shutil.copy(exported("plain"), tmp_path / "submodel.onnx"))
    quantise_submodel(path, pixels(6))
    constants = onnx.load(str(path)).graph.initializer
    wide = [onnx.numpy_helper.to_array(constant) for constant in constants if constant.data_type == TensorProto.FLOAT]
    narrow = [constant.name for constant in constants if constant.data_type == TensorProto.FLOAT16]
    assert "model.pos_embed_half" in narrow
    for values in wide:  # too few to be worth an operator, or values that float16 does not hold
        half = np.abs(values.astype(np.float16) - values).max()
        assert values.size < FEWEST_HALVED or half > 2**-10 * np.abs(values).max()


def test_int8_quantises_the_patch_embedding(exported, tmp_path):
    path = Path(shutil.copy(exported("plain"), tmp_path / "submodel.onnx"))
    assert "Conv" not in {node.op_type for node in onnx.load(str(path)).graph.node}
    quantise_submodel(path, pixels(6))
    kinds = {constant.name: constant.data_type for constant in onnx.load(str(path)).graph.initializer}
    assert [kinds[name] for name in kinds if "patch_embed" in name and name.endswith("quantized")] == [TensorProto.INT8]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_file_is_as_large_as_the_plan_says(tmp_path, precision):
    base = backbone.describe(backbone.template("vit_digits_patch4_8", image_size=8, channels=3, classes=10))
    cut = base.rotated_form().narrowed(2, "dims").model_copy(update={"classes": 0})
    model = backbone.create("vit_digits_patch4_8", channels=3, classes=0, widths=cut.widths, rotated=True).eval()
    path = tmp_path / "submodel.onnx"
    export_submodel(FeatureExtractor(model, (0.5,) * 3, (0.5,) * 3), pixels(2), path)
    if precision == "int8":
        quantise_submodel(path, pixels(2))
    if precision == "int4":
        pack_submodel(path, pixels(2), [pixels(4).numpy()])
    graph = path.stat().st_size - model_cost(cut, precision).weight_bytes
    assert abs(graph) < 30_000


def test_features_that_are_moved_too_far_are_an_error(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "QUANTISATION_LIMITS", {"int8": 1e-6, "int4": 1e-6})
    path = Path(shutil.copy(exported("plain"), tmp_path / "submodel.onnx"))
    with pytest.raises(BuildError, match=r"in int8 .*--precision fp32"):
        quantise_submodel(path, pixels(6))
    path = Path(shutil.copy(exported("plain"), tmp_path / "again.onnx"))
    with pytest.raises(BuildError, match=r"in int4 .*--precision fp32"):
        pack_submodel(path, pixels(6), [pixels(6).numpy()])


def calibration():
    return [pixels(32, seed=9).numpy(), pixels(32, seed=10).numpy()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_int4_keeps_features_closer_than_rounding_to_nearest(exported, tmp_path, variant):
    before, errors = run(exported(variant), image=pixels(6)), {}
    for method in ("gptq", "nearest"):
        path = Path(shutil.copy(exported(variant), tmp_path / f"{method}.q4"))
        errors[method] = pack_submodel(path, pixels(6), calibration(), method)
        after = open_session(path, threads=1).run(None, {"image": pixels(6).numpy()})[0]
        moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        assert errors[method] == pytest.approx(float(moved.mean()), rel=1e-4)
    assert errors["gptq"] < errors["nearest"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gptq.q4", "nearest.q4"]


def test_int4_is_the_int8_graph_with_other_weights(exported, tmp_path):
    int8, int4 = (Path(shutil.copy(exported("plain"), tmp_path / name)) for name in ("int8.onnx", "int4.q4"))
    quantise_submodel(int8, pixels(6))
    pack_submodel(int4, pixels(6), calibration())
    unpacked = io.BytesIO()
    unpack(io.BytesIO(int4.read_bytes()), unpacked)
    graphs = [onnx.load(str(int8)).graph, onnx.load_from_string(unpacked.getvalue()).graph]
    kinds = [[node.op_type for node in graph.node if node.op_type != "Cast"] for graph in graphs]
    assert kinds[0] == kinds[1]
    kept = [{constant.name for constant in graph.initializer if "_scale" not in constant.name} for graph in graphs]
    assert kept[0] == kept[1]


def test_int4_is_the_same_each_time(exported, tmp_path):
    files = [Path(shutil.copy(exported("plain"), tmp_path / f"{number}.q4")) for number in range(2)]
    for file in files:
        pack_submodel(file, pixels(6), calibration())
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("variant", [*VARIANTS, "distilled", "pre_norm"])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_submodel_whose_input_is_not_square_equals_pytorch(tmp_path, variant, rotated):
    base = make(variant, image_size=ImageSize(8, 20))
    widths = pruned_widths(backbone.describe(base).widths, 1, "dims")
    torch.manual_seed(0)
    small = backbone.initialised(backbone.like(base, widths=widths, rotated=rotated))
    extractor = FeatureExtractor(small, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()
    wide = torch.randint(0, 256, (5, 3, 8, 20), dtype=torch.uint8)
    export_submodel(extractor, wide[:4], tmp_path / "wide.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "wide.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 8, 20]
    with torch.no_grad():
        expected = extractor(wide).numpy()
    assert np.abs(run(tmp_path / "wide.onnx", image=wide) - expected).max() <= 1e-4
