from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image
from rich.console import Console

from edvit.builder import pipeline
from edvit.builder.jobs.progress import Reporter
from edvit.builder.models import checkpoint
from edvit.builder.pipeline import REPORT, build, make_plan
from edvit.builder.report.statistics import Share
from edvit.builder.stages import test as test_stage
from edvit.builder.stages.base import weights_path
from edvit.builder.stages.source import open_source
from edvit.builder.subspace import cut, statistics
from edvit.builder.train.temperature import Reliability, fit_temperature
from edvit.builder.vit import backbone
from edvit.bundle import MANIFEST, read_bundle
from edvit.errors import BundleError, ConfigError, DataError, InfeasibleError, WeightsError
from edvit.fleet import Device, Fleet, local_fleet
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import decode_image
from edvit.plan.cost import model_cost
from edvit.runtime.predictor import LocalPredictor
from tiny_build import tiny_config
from vit_variants import NAMES

torch.set_num_threads(1)


def stages(work):
    """When each stage's folder was made, by its name."""
    folders = (path for path in work.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path.stat().st_mtime_ns for path in folders}


def redone(before, after):
    """Names of stages that are new or were made again."""
    return sorted(name.rsplit("-", 1)[0] for name, when in after.items() if before.get(name) != when)


@pytest.fixture(scope="module")
def test_pixels(tiny_build):
    """Every test image as the gateway would send it."""
    source = read_split("digits", "test")
    how = tiny_build.bundle.manifest.preprocessing
    return np.stack([decode_image(source.encoded(i), how) for i in range(len(source))])


# --- what was built ----------------------------------------------------------------------------------------


def test_the_bundle_describes_what_was_built(tiny_build):
    manifest, built = read_bundle(tiny_build.bundle.path).manifest, tiny_build.built
    assert manifest.data.classes == tuple("0123456789")
    assert (manifest.data.train + manifest.data.validation, manifest.data.test) == (1437, 360)
    assert sorted(c for submodel in manifest.submodels for c in submodel.classes) == list(range(10))
    assert [line.device for line in manifest.plan.placed] == ["dev-1", "dev-2"]
    for submodel, artifact in zip(manifest.submodels, built.fused.recovered, strict=True):
        model = checkpoint.load_model(weights_path(artifact))
        head = sum(p.numel() for p in model.head.parameters())
        assert submodel.params == sum(p.numel() for p in model.parameters()) - head
        assert submodel.widths == backbone.describe(model).widths
        assert submodel.feature_dim == model.embed_dim < 24
    base = checkpoint.load_model(weights_path(built.base.artifact))
    assert manifest.base.params == sum(p.numel() for p in base.parameters())
    assert manifest.config["model"] == "vit_test_build"
    assert manifest.config["recover_epochs"] == 2


def test_every_device_and_sub_model_is_measured(tiny_build):
    manifest, test = tiny_build.bundle.manifest, tiny_build.built.test
    names = ["base", "fused", "n1", "submodel-0", "submodel-1", "fused-without-dev-1", "fused-without-dev-2"]
    assert [metric.name for metric in manifest.metrics if metric.unit == "fraction"] == [*names, "calibration-error"]
    assert {metric.split for metric in manifest.metrics if metric.unit == "fraction"} == {"test"}
    assert np.array_equal(test.labels, read_split("digits", "test").labels)
    for name in ("base", "fused", "n1"):
        assert manifest.metric(name) > 0.6, "ten classes, one in ten by chance"
    assert manifest.metric("fused-without-dev-1") < manifest.metric("fused")


def test_probabilities_are_calibrated_on_validation_images(tiny_build):
    """What the bundle says was refused on validation images is refused of them by the bundle's files."""
    manifest, validation = tiny_build.bundle.manifest, tiny_build.built.data.validation
    logits = LocalPredictor(tiny_build.bundle).run(validation.pixels()).logits
    assert manifest.metric("temperature", "validation") == tiny_build.built.fused.fusion.note["temperature"]
    assert fit_temperature(logits, validation.labels) == pytest.approx(1.0, abs=0.02)
    for share in (0.05, 0.1, 0.2):
        predictor = LocalPredictor(tiny_build.bundle, unknown_below=manifest.unknown_below(share))
        assert predictor.run(validation.pixels()).unknown.mean() == pytest.approx(share, abs=1.5 / len(validation))
    test = tiny_build.built.test
    assert manifest.metric("calibration-error") == Reliability.of(test.fused, test.labels).error
    with pytest.raises(ConfigError, match=re.escape("a share of 0.3, only for 0.01, 0.02, 0.05, 0.1, 0.2")):
        manifest.unknown_below(0.3)
    with pytest.raises(ConfigError, match="did not calibrate"):
        manifest.model_copy(update={"metrics": ()}).unknown_below(0.05)


def test_the_files_of_the_bundle_give_what_the_build_measured(tiny_build, test_pixels):
    predictor, test = LocalPredictor(tiny_build.bundle), tiny_build.built.test
    whole = predictor.predict(test_pixels)
    assert np.array_equal(whole.indices, test.fused.argmax(axis=1))
    assert np.abs(whole.logits - test.fused).max() < 1e-4
    for index, device in enumerate(("dev-1", "dev-2")):
        without = predictor.predict(test_pixels, absent={index})
        assert np.abs(without.logits - test.without[device]).max() < 1e-4


def test_the_report_is_whole_and_has_the_measured_figures(tiny_build):
    report = (tiny_build.bundle.path / REPORT).read_text()
    assert report.rstrip().endswith("</html>")
    for name in ("fused", "base"):
        assert f"{tiny_build.bundle.manifest.metric(name):.1%}".rstrip("%") in report
    built = tiny_build.built
    assert escape(built.verdict.text) in report
    wrong = int((built.test.fused.argmax(axis=1) != built.test.labels).sum())
    assert report.count("<img ") == min(wrong, 12)
    for name in ("base in PyTorch", "base in ONNX Runtime", "sub-model 1 alone", "N = 1, its fusion"):
        assert name in report


def test_the_verdict_is_said_and_the_command_is_kept_outside_the_manifest(tiny_build, work, tmp_path):
    said = io.StringIO()
    report = Reporter(Console(file=said, width=200, highlight=False))
    command = ("edvit", "build", "--data", "my data")
    bundle, built = build(tiny_config(), tmp_path / "again", work=work, command=command, report=report)
    assert bundle.digest == tiny_build.bundle.digest
    assert escape("edvit build --data 'my data'") in (bundle.path / REPORT).read_text()
    test, verdict = said.getvalue().splitlines()[-3:-1]
    low, high = Share.of(built.test.correct()["fused"]).interval
    assert f"fused {built.test.accuracy(built.test.fused):.1%} ({100 * low:.1f}–{100 * high:.1f})" in test
    assert verdict.startswith(f"✓ verdict    {built.verdict.text}")


# --- resuming ----------------------------------------------------------------------------------------------


def test_again_does_nothing_again_and_gives_the_same_bundle(tiny_build, work, tmp_path):
    before = stages(work)
    names = [name.rsplit("-", 1)[0] for name in before]
    assert sorted(set(names)) == [
        "base", "data", "export", "fuse", "prune", "recover", "statistics", "teacher", "test",
    ]  # fmt: skip
    bundle, _ = build(tiny_config(), tmp_path / "again", work=work)
    assert bundle.digest == tiny_build.bundle.digest
    assert redone(before, stages(work)) == []


def test_force_redoes_a_stage_and_what_is_the_same_stays(tiny_build, work, tmp_path):
    before = stages(work)
    bundle, _ = build(tiny_config(), tmp_path / "again", work=work, force=frozenset({"fuse"}))
    assert redone(before, stages(work)) == ["fuse", "fuse"]  # of the plan, and of N = 1
    assert bundle.digest == tiny_build.bundle.digest


@pytest.mark.parametrize("pruner", ["subspace", "channels"])
def test_a_distilled_model_is_built_and_its_devices_send_both_tokens(pruner, test_pixels, tmp_path):
    config = tiny_config(model=NAMES["distilled"], prune=pruner, baseline=False)
    bundle, built = build(config, tmp_path / "out", work=tmp_path / "work")
    for index, submodel in enumerate(bundle.manifest.submodels):
        shape = built.fused.architecture(index)
        assert submodel.feature_dim == shape.feature_dim == 2 * shape.widths.dim
        assert submodel.params == model_cost(shape).params
    whole = LocalPredictor(bundle).predict(test_pixels)
    assert np.abs(whole.logits - built.test.fused).max() < 1e-4


def test_statistics_are_redone_though_everything_is_cut(tiny_build, work, tmp_path):
    before = stages(work)
    bundle, _ = build(tiny_config(), tmp_path / "again", work=work, force=frozenset({"statistics"}))
    assert redone(before, stages(work)) == ["statistics"]  # what is cut from the same statistics stays
    assert bundle.digest == tiny_build.bundle.digest


def test_scores_are_redone_though_everything_is_cut(work, tmp_path):
    config = tiny_config(prune="channels", criterion="magnitude", recover_epochs=0, views=2, baseline=False)
    first, _ = build(config, tmp_path / "first", work=work)
    before = stages(work)
    again, _ = build(config, tmp_path / "again", work=work, force=frozenset({"scores"}))
    assert redone(before, stages(work)) == ["scores", "scores"]
    assert again.digest == first.digest


def test_another_setting_redoes_what_depends_on_it_alone(tiny_build, work, tmp_path):
    before = stages(work)
    config = tiny_config(baseline=False, fleet=local_fleet(2, name="other"))
    bundle, built = build(config, tmp_path / "other", work=work)
    assert redone(before, stages(work)) == ["prune", "prune", "prune", "test"]  # groups are cut together
    assert built.baseline is None
    assert bundle.manifest.metric("n1") is None
    assert bundle.manifest.submodels == tiny_build.bundle.manifest.submodels


def test_other_labels_of_the_test_images_are_measured_anew(tiny_build, work, tmp_path, monkeypatch):
    before, source = stages(work), read_split("digits", "test")
    changed = replace(source, labels=(source.labels + 1) % 10)
    monkeypatch.setattr(test_stage, "read_split", lambda *_: changed)
    bundle, _ = build(tiny_config(), tmp_path / "again", work=work)
    assert redone(before, stages(work)) == ["data", "test"]
    assert bundle.manifest.metric("base") < 0.5 < tiny_build.bundle.manifest.metric("base")


def test_an_existing_bundle_is_replaced_and_anything_else_is_kept(tiny_build, work, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny_build.bundle.path, out)
    (out / MANIFEST).write_text("{}")
    bundle, _ = build(tiny_config(), out, work=work)
    assert bundle.digest == tiny_build.bundle.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        build(tiny_config(), precious)
    assert [path.name for path in precious.iterdir()] == ["chapter.txt"]
    assert not (tmp_path / "thesis-work").exists(), "refused before any work"


# --- shapes of a split -------------------------------------------------------------------------------------


def test_one_sub_model_that_keeps_everything_is_the_base_model(tiny_build, work, tmp_path):
    config = tiny_config(fleet=local_fleet(1), keep="1/1", recover_epochs=0, views=2)
    bundle, built = build(config, tmp_path / "whole", work=work)
    (only,) = bundle.manifest.submodels
    assert only.classes == tuple(range(10))
    assert only.widths == bundle.manifest.base.widths
    assert built.baseline is None, "N = 1 is the split itself"
    assert np.abs(built.test.alone[0] - built.test.base).max() < 1e-3
    assert bundle.manifest.metric("fused") > 0.6


@pytest.mark.slow
def test_a_bundle_of_fitted_widths_says_what_each_sub_model_has_become(work, tmp_path):
    config = tiny_config(model="vit_digits_patch4_8", keep="1/2", recover_epochs=0, views=2, baseline=False)
    bundle, built = build(config, tmp_path / "fitted", work=work)
    for submodel, planned in zip(bundle.manifest.submodels, built.plan.submodels, strict=True):
        assert submodel.params <= planned.cost.params
        assert submodel.flops <= planned.cost.flops
        assert submodel.feature_dim == submodel.widths.dim
    assert any(
        submodel.widths != planned.architecture.widths
        for submodel, planned in zip(bundle.manifest.submodels, built.plan.submodels, strict=True)
    )
    assert bundle.manifest.config["widths"] == "fitted", "by default"
    assert bundle.manifest.metric("fused") > 0.3


def test_a_bundle_in_int8_is_measured_as_it_is_deployed(work, tmp_path):
    settings = {"recover_epochs": 0, "views": 2, "baseline": False}
    whole, _ = build(tiny_config(**settings), tmp_path / "fp32", work=work)
    small, built = build(tiny_config(**settings, precision="int8"), tmp_path / "int8", work=work)
    assert small.manifest.config["precision"] == "int8"
    for one, other in zip(whole.manifest.submodels, small.manifest.submodels, strict=True):
        assert one.model.sha256 != other.model.sha256
        assert (one.params, one.widths) == (other.params, other.widths)
        cost = model_cost(built.fused.architecture(other.id), "int8")
        assert (other.peak_memory_bytes, other.params) == (cost.peak_memory_bytes, cost.params)
    assert whole.manifest.fusion == small.manifest.fusion, "trained on the same features"
    assert abs(whole.manifest.metric("fused") - small.manifest.metric("fused")) < 0.1
    assert "ONNX Runtime int8" in (small.path / "report.html").read_text()


def test_a_bundle_in_int4_is_of_the_same_sub_models_and_of_version_2(work, tmp_path):
    settings = {"recover_epochs": 0, "views": 2, "baseline": False}
    whole, _ = build(tiny_config(**settings), tmp_path / "fp32", work=work)
    small, built = build(tiny_config(**settings, precision="int4"), tmp_path / "int4", work=work)
    assert (whole.manifest.version, small.manifest.version) == (1, 2)
    assert [submodel.model.file for submodel in small.manifest.submodels] == ["submodel-0.q4", "submodel-1.q4"]
    for one, other in zip(whole.manifest.submodels, small.manifest.submodels, strict=True):
        assert (one.params, one.widths) == (other.params, other.widths)
        cost = model_cost(built.fused.architecture(other.id), "int8")
        assert other.peak_memory_bytes == cost.peak_memory_bytes, "a device holds what it holds in int8"
    assert whole.manifest.fusion == small.manifest.fusion, "trained on the same features"
    assert abs(whole.manifest.metric("fused") - small.manifest.metric("fused")) < 0.15
    assert "ONNX Runtime int8, unpacked from int4" in (small.path / "report.html").read_text()
    again, _ = build(tiny_config(**settings, precision="int4"), tmp_path / "again", work=work)
    assert again.digest == small.digest
    assert len(list(work.glob("quantise-*"))) >= 2


def test_fitted_widths_that_pass_a_device_in_int8_are_refused_before_they_are_trained(work, tmp_path, monkeypatch):
    def fleet(megabytes):
        return Fleet(name="one", devices=(Device.model_validate({"name": "only", "memory_mb": megabytes}),))

    settings = {"groups": 1, "recover_epochs": 0, "views": 2, "baseline": False, "precision": "int8"}
    roomy = tiny_config(**settings, fleet=fleet(100))
    plan = make_plan(roomy, open_source(roomy))
    tight = tiny_config(**settings, fleet=fleet(plan.submodels[0].cost.peak_memory_bytes / 1e6))
    monkeypatch.setattr(pipeline, "read_architecture", lambda _: plan.base)  # as if it had become so wide
    with pytest.raises(InfeasibleError, match=r"only has .* take .* MB in int8; give --widths uniform"):
        build(tight, tmp_path / "tight", work=work)
    assert not (tmp_path / "tight").exists()


@pytest.mark.slow
def test_sub_models_learn_from_mixed_images_too(tiny_build, work, tmp_path):
    settings = {"mix": 0.5, "prune": "channels", "recover_epochs": 4, "views": 4, "baseline": False}
    bundle, built = build(tiny_config(**settings), tmp_path / "out", work=work)
    assert bundle.manifest.config["criterion"] == "fisher-kl"
    assert len(list(work.glob("base-*"))) == 1, "the base model sees no mixed images"
    pruned = [artifact.note["validation"] for artifact in built.fused.pruned]
    trained = [artifact.note["validation"] for artifact in built.fused.recovered]
    assert min(trained) > max(pruned)
    assert built.test.accuracy(built.test.fused) > 0.6


@pytest.mark.slow
def test_precision_of_training_is_recorded_and_redone_only_where_it_was_asked_for(tiny_build, work, tmp_path):
    mixed = {amp: tiny_config(amp=amp, baseline=False) for amp in (True, False)}
    assert isinstance(tiny_build.bundle.manifest.config["amp"], bool), "resolved for this machine"
    for amp, asked in mixed.items():
        bundle, built = build(asked, tmp_path / str(amp), work=work)
        assert bundle.manifest.config["amp"] is amp
        assert built.test.accuracy(built.test.fused) > 0.6
    assert len(list(work.glob("base-*"))) == 3


def test_two_groups_share_a_device_and_are_pruned_until_they_fit(work, tmp_path):
    def fleet(memory_mb):
        return Fleet(name="one", devices=(Device.model_validate({"name": "only", "memory_mb": memory_mb}),))

    settings = {"groups": 2, "recover_epochs": 0, "views": 2, "baseline": False}
    roomy = tiny_config(**settings, fleet=fleet(100))
    plan = make_plan(roomy, open_source(roomy))
    needed = sum(submodel.cost.peak_memory_bytes for submodel in plan.submodels)
    assert {submodel.heads_pruned for submodel in plan.submodels} == {1}

    tight = tiny_config(**settings, fleet=fleet((needed - 1) / 1e6))
    bundle, built = build(tight, tmp_path / "tight", work=work)
    assert {line.device for line in bundle.manifest.plan.placed} == {"only"}
    assert max(submodel.heads_pruned for submodel in built.plan.submodels) == 2
    assert sum(line.memory_bytes for line in bundle.manifest.plan.placed) < needed
    assert list(built.test.without) == ["only"]
    assert built.test.accuracy(built.test.without["only"]) < 0.3, "nothing is left to decide by"


def test_a_sub_model_of_less_than_one_head_can_be_built(work, tmp_path):
    settings = {"groups": 1, "recover_epochs": 0, "views": 2, "baseline": False}
    narrowest = tiny_config(**settings, keep="0.01")
    source = open_source(narrowest)
    needed = make_plan(narrowest, source).submodels[0].cost.peak_memory_bytes
    fleet = Fleet(name="one", devices=(Device.model_validate({"name": "only", "memory_mb": needed / 1e6}),))
    bundle, built = build(tiny_config(**settings, keep="1/3", fleet=fleet), tmp_path / "out", work=work)
    assert built.plan.submodels[0].heads_pruned > source.architecture.heads - 1
    (submodel,) = bundle.manifest.submodels
    assert {(block.head_dim, block.hidden) for block in submodel.widths.blocks} == {(8, 8)}
    assert submodel.widths.dim == 8


def test_a_fleet_that_is_too_small_is_refused_before_any_work(tmp_path):
    fleet = Fleet(name="small", devices=(Device.model_validate({"name": "chip", "memory_mb": 0.001}),))
    with pytest.raises(
        InfeasibleError, match=r"sub-model \d fits on no device: .*chip.*even at keep ratio 0.1667"
    ) as e:
        build(tiny_config(fleet=fleet), tmp_path / "out")
    assert e.value.constraint == "memory"
    assert e.value.shortfall > 0
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_too_many_calibration_images_are_refused_before_any_work(tmp_path, monkeypatch):
    """Two groups of five classes, and N = 1 with the images of both; the base model is 24 wide, the sub-models 16."""
    bytes_an_image = 4 * 5 * (2 * 24 + 16)
    monkeypatch.setattr(cut, "STATE_LIMIT_BYTES", 40 * bytes_an_image)
    said = r"--calibration 21 images take more than the limit .*; give --calibration 20 or --no-baseline$"
    with pytest.raises(ConfigError, match=said) as caught:
        build(tiny_config(calibration=21), tmp_path / "out")
    assert "\n" not in str(caught.value)
    # A third are foreign.
    with pytest.raises(ConfigError, match=r"--calibration 31 images take .* give --calibration 30$"):
        build(tiny_config(calibration=31, baseline=False), tmp_path / "out")
    monkeypatch.setattr(cut, "STATE_LIMIT_BYTES", 6 * bytes_an_image)
    with pytest.raises(ConfigError, match=r"one calibration image of each class take more .* --img-size"):
        build(tiny_config(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_more_groups_than_fit_are_refused_before_any_work(tmp_path, monkeypatch):
    source = open_source(tiny_config())
    of_one = statistics.sums_bytes(source.architecture.rotated_form(), 1, gradients=True)
    monkeypatch.setattr(statistics, "SUMS_LIMIT_BYTES", 2 * of_one - 1)
    with pytest.raises(ConfigError, match=r"statistics of 2 class groups take .* at most 1 group, or give --prune"):
        build(tiny_config(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_as_many_calibration_images_as_fit_are_cut(work, tmp_path, monkeypatch):
    monkeypatch.setattr(cut, "STATE_LIMIT_BYTES", 40 * 4 * 5 * (2 * 24 + 16))
    bundle, _ = build(tiny_config(calibration=20, recover_epochs=0, views=2), tmp_path / "out", work=work)
    assert bundle.manifest.metric("n1") > 0.3


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent.pth", "no such file"), ("folder.pth", "is a folder"), ("w.npz", "unknown kind of weights file")],
)
def test_weights_that_cannot_be_read_are_refused_before_any_work(tmp_path, name, said):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match=said):
        build(tiny_config(weights=tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out-work").exists()


@pytest.mark.parametrize("keep", ["0", "2", "a third", "1/0", "-1/3"])
def test_a_keep_ratio_that_makes_no_sense(tmp_path, keep):
    with pytest.raises(ConfigError, match="keep ratio"):
        build(tiny_config(keep=keep), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- image folders -----------------------------------------------------------------------------------------


def image_folder(root: Path, classes=2, images=6):
    """Dark and bright noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + label * 150 // (classes - 1)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def folder_config(root, **settings):
    few = {"fleet": local_fleet(1), "base_epochs": 1, "recover_epochs": 1, "channels": 1}
    return tiny_config(**{**few, "data": f"imagefolder:{root}", **settings})


def test_a_damaged_test_image_is_told_before_any_training_and_nothing_is_lost_by_it(tmp_path):
    root, out = image_folder(tmp_path / "data"), tmp_path / "out"
    bad = root / "test" / "class-1" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:60])
    with pytest.raises(DataError) as caught:
        build(folder_config(root), out)
    assert str(bad) in str(caught.value)
    assert not out.exists()
    before = stages(tmp_path / "out-work")
    assert {name.rsplit("-", 1)[0] for name in before} == {"data"}

    bundle, _ = build(folder_config(root, bad_files="skip"), out)
    assert (bundle.manifest.data.train, bundle.manifest.data.validation, bundle.manifest.data.test) == (10, 2, 11)
    before = stages(tmp_path / "out-work")

    bad.write_bytes(whole)
    bundle, _ = build(folder_config(root), out)
    assert redone(before, stages(tmp_path / "out-work")) == ["data", "test"]
    assert bundle.manifest.data.classes == ("class-0", "class-1")
    assert (bundle.manifest.data.train, bundle.manifest.data.validation, bundle.manifest.data.test) == (10, 2, 12)


def test_one_class_is_nothing_to_split(tmp_path):
    root = image_folder(tmp_path / "data")
    for split in ("train", "test"):
        shutil.rmtree(root / split / "class-1")
    with pytest.raises(DataError, match="one class, 'class-0'"):
        build(folder_config(root), tmp_path / "out")


def test_a_class_with_one_image_is_trained_and_not_validated(tmp_path):
    root = image_folder(tmp_path / "data")
    for path in sorted((root / "train" / "class-1").iterdir())[1:]:
        path.unlink()
    bundle, _ = build(folder_config(root), tmp_path / "out")
    assert (bundle.manifest.data.train, bundle.manifest.data.validation) == (6, 1)


def test_settings_and_versions_are_recorded(tiny_build):
    manifest = json.loads((tiny_build.bundle.path / MANIFEST).read_text())
    assert manifest["config"]["seed"] == 0
    assert not {"workers", "ray", "memory_limit_mb"} & set(manifest["config"]), "they do not change the result"
    assert set(manifest["versions"]) >= {"edvit", "torch", "timm", "onnxruntime"}


def test_the_manifest_records_every_setting_resolved(tiny_build):
    config = tiny_build.bundle.manifest.config
    open_ones = {name for name, value in config.items() if value is None}
    assert open_ones == {
        "background", "class_names", "class_weights", "data_root", "mean", "pool", "split_by", "std", "unlabeled",
        "weights",
    }  # fmt: skip
    assert "criterion" not in config, "nothing is scored"
