"""Laws of the cut: the identity where nothing is cut, no effect of a rotation, and what bad input does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import calibration_images
import vit_variants
from edvit.builder.models import checkpoint
from edvit.builder.subspace import cut as cut_module
from edvit.builder.subspace.cut import (
    CutGroup,
    Options,
    bin_weights,
    cut,
    group_rows,
    largest_state_bytes,
    state_bytes,
)
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import collect
from edvit.builder.subspace.widths import fit_group
from edvit.builder.train.device import CPU, TorchDevice
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError, DataError
from edvit.shape.vit import BlockWidths, Widths

CONVERTIBLE = [variant for variant in vit_variants.VARIANTS if variant != "no_final_norm"]
FULL = Widths(dim=24, blocks=(BlockWidths(heads=3, head_dim=8, hidden=48),) * 3)
NARROW = Widths(
    dim=16,
    blocks=(
        BlockWidths(heads=3, head_dim=4, hidden=16),
        BlockWidths(heads=2, head_dim=8, hidden=24),
        BlockWidths(heads=3, head_dim=3, hidden=48),
    ),
)
NOTHING = Options(rotate=False, low_rank=False, refit_readers=False, refit_writers=False)
ABLATIONS = {
    "all": Options(),
    "rotation alone": Options(low_rank=False, refit_readers=False, refit_writers=False),
    "low rank alone": replace(NOTHING, low_rank=True),
    "writers alone": replace(NOTHING, refit_writers=True, correct_errors=False),
    "errors corrected": replace(NOTHING, refit_writers=True, correct_errors=True),
    "readers alone": replace(NOTHING, refit_readers=True),
    "fisher": Options(fisher=0.3),
    "nothing": NOTHING,
}


def logits(model, images=None):
    with torch.no_grad():
        return model(vit_variants.images() if images is None else images)


def cut_one(variant, widths, options=None, calibration=None, classes=(0, 1)):
    base = to_rms(vit_variants.make(variant))
    calibration = calibration or calibration_images.calibration()
    sums = collect(base, calibration, gradients=True)
    return cut(base, sums, calibration, [CutGroup(classes, widths)], options)[0]


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_nothing_cut_is_the_identity(variant):
    model = vit_variants.make(variant)
    whole = cut_one(variant, FULL)
    torch.testing.assert_close(logits(whole.model), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_nothing_cut_is_the_identity_with_every_option(options):
    torch.testing.assert_close(
        logits(cut_one("plain", FULL, options).model), logits(vit_variants.make("plain")), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_a_rotation_changes_no_output(variant, monkeypatch):
    """Any orthogonal matrix in place of the leading directions."""
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(5)).double())[0]
    monkeypatch.setattr(cut_module.Cutting, "_directions", lambda *_: rotation)
    options = Options(refit_readers=False, refit_writers=False)
    rotated = cut_one(variant, FULL, options)
    torch.testing.assert_close(logits(rotated.model), logits(vit_variants.make(variant)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_a_narrow_model_has_its_widths_and_survives_the_disk(variant, tmp_path):
    narrow = cut_one(variant, NARROW)
    assert backbone.describe(narrow.model).widths == NARROW
    checkpoint.save_model(tmp_path / "model.safetensors", narrow.model)
    assert torch.equal(logits(checkpoint.load_model(tmp_path / "model.safetensors")), logits(narrow.model))
    product = narrow.rotation.T @ narrow.rotation
    torch.testing.assert_close(product, torch.eye(16), atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["plain", "pre_norm", "layer_scale"])
def test_every_refit_brings_the_model_closer_to_the_base(variant):
    """On the calibration images of the own classes, in mean squared error of the last stream times Q."""
    base = to_rms(vit_variants.make(variant))
    calibration = calibration_images.calibration(count=200, batch_size=100)
    sums = collect(base, calibration)
    (_, images), *_ = calibration_images.of(
        calibration.images.pixels(np.flatnonzero(calibration.labels < 2)), np.zeros(80), 80
    ).batches(np.arange(80))
    errors = []
    for options in (
        Options(refit_readers=False, refit_writers=False),
        Options(refit_readers=False),
        Options(),
    ):
        narrow = cut(base, sums, calibration, [CutGroup((0, 1), NARROW)], options)[0]
        errors.append(float((logits(narrow.model, images) - logits(base, images)).square().mean()))
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]


def test_groups_cut_together_are_those_cut_alone():
    base, calibration = to_rms(vit_variants.make("plain")), calibration_images.calibration()
    sums = collect(base, calibration)
    groups = [CutGroup((0, 1), NARROW), CutGroup((2, 3, 4), NARROW), CutGroup((4,), FULL)]
    together = cut(base, sums, calibration, groups)
    for group, one in zip(groups, together, strict=True):
        alone = cut(base, sums, calibration, [group])[0]
        torch.testing.assert_close(logits(one.model), logits(alone.model), atol=1e-5, rtol=1e-5)


class Passes:
    """Counts passes of the base model, by what is told of them."""

    def __init__(self):
        self.told = []

    def __call__(self, done, total):
        self.told.append((done, total))

    @property
    def count(self):
        assert [done for done, _ in self.told] == list(range(1, self.told[-1][1] + 1))
        return len(self.told) // 6


def cut_within(limit, groups, monkeypatch):
    base, calibration = to_rms(vit_variants.make("plain")), calibration_images.calibration()
    monkeypatch.setattr(cut_module, "STATE_LIMIT_BYTES", limit)
    passes = Passes()
    return cut(base, collect(base, calibration), calibration, groups, progress=passes), passes.count


GROUPS = [CutGroup((0, 1), NARROW), CutGroup((2, 3), NARROW), CutGroup((4,), FULL), CutGroup((0, 1, 2, 3, 4), NARROW)]


def assert_same(made, expected):
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one.rotation, other.rotation)
        assert (one.energy, one.after_attention, one.after_ffn) == (
            other.energy,
            other.after_attention,
            other.after_ffn,
        )
        for name, value in other.model.state_dict().items():
            assert torch.equal(one.model.state_dict()[name], value), name


def test_groups_that_do_not_fit_together_are_cut_one_after_the_other_to_the_same_bits(monkeypatch):
    architecture = backbone.describe(vit_variants.make("plain"))
    together, passes = cut_within(2**31, GROUPS, monkeypatch)
    assert passes == 1
    everything = (60, NARROW)
    for limit, expected_passes in (
        (state_bytes(architecture, 60, [everything]), 3),
        (state_bytes(architecture, 60, [everything, (32, NARROW)]), 2),
    ):
        made, passes = cut_within(limit, GROUPS, monkeypatch)
        assert passes == expected_passes
        assert_same(made, together)


def test_groups_of_more_images_than_fit_are_cut_over_their_own(monkeypatch):
    together, _ = cut_within(2**31, GROUPS[:3], monkeypatch)
    made, passes = cut_within(
        state_bytes(backbone.describe(vit_variants.make("plain")), 32, [(32, FULL)]), GROUPS[:3], monkeypatch
    )
    assert passes == 3
    for one, other in zip(made, together, strict=True):
        torch.testing.assert_close(logits(one.model), logits(other.model), atol=1e-5, rtol=1e-5)


def test_the_largest_group_is_foreseen():
    labels, options = np.arange(60) % 5, Options()
    rows = [len(group_rows(labels, group.classes, options, seed=0)[0]) for group in GROUPS]
    architecture = backbone.describe(vit_variants.make("plain"))
    own = [(24, NARROW), (24, NARROW), (12, FULL), (60, NARROW)]
    for (count, widths), images in zip(own, rows, strict=True):
        expected = state_bytes(architecture, images, [(images, widths)])
        assert largest_state_bytes(architecture, [(count, widths)], 60, options) == expected
    assert largest_state_bytes(architecture, own, 60, options) == state_bytes(architecture, 60, [own[3]])


def test_statistics_by_group_do_as_well_as_by_class():
    base, calibration = to_rms(vit_variants.make("plain")), calibration_images.calibration()
    by_class = collect(base, calibration)
    by_group = collect(base, calibration, bins=[int(label >= 2) for label in calibration.labels])
    one = cut(base, by_class, calibration, [CutGroup((0, 1), NARROW)])[0]
    other = cut(base, by_group, calibration, [CutGroup((0, 1), NARROW, bins=(0,))])[0]
    torch.testing.assert_close(logits(one.model), logits(other.model), atol=1e-4, rtol=1e-4)


def test_images_and_weights_of_a_group():
    labels = np.arange(100) % 5
    rows, weights = group_rows(labels, (1, 3), Options(foreign=0.5, foreign_images=0.25), seed=0)
    own = np.isin(labels[rows], (1, 3))
    assert own.sum() == 40
    assert (~own).sum() == 10
    assert weights[torch.from_numpy(own)].tolist() == [1.0] * 40
    assert float(weights[torch.from_numpy(~own)].sum()) == pytest.approx(20.0)
    rows, _ = group_rows(labels, (1, 3), Options(foreign=0.0), seed=0)
    assert np.isin(labels[rows], (1, 3)).all()
    rows, weights = group_rows(labels, range(5), Options(), seed=0)
    assert len(rows) == 100
    assert bool((weights == 1).all())


def test_weights_of_bins():
    base = to_rms(vit_variants.make("plain"))
    sums = collect(base, calibration_images.calibration(count=50))
    weights = bin_weights(sums, (1, 3), foreign=1 / 3)
    assert weights[[1, 3]].tolist() == [1.0, 1.0]
    assert float((weights * sums.images)[[0, 2, 4]].sum()) == pytest.approx(20 / 3)
    assert bin_weights(sums, range(5), foreign=1 / 3).tolist() == [1.0] * 5


# --- bad input ---------------------------------------------------------------------------------------------


def test_fewer_images_than_directions():
    """Two images, ten tokens, for 24 directions and 48 units: what they do not determine stays the base's."""
    calibration = calibration_images.calibration(count=2, classes=2)
    whole = cut_one("plain", FULL, calibration=calibration)
    torch.testing.assert_close(logits(whole.model), logits(vit_variants.make("plain")), atol=1e-4, rtol=1e-4)
    assert bool(logits(cut_one("plain", NARROW, calibration=calibration).model).isfinite().all())


def test_constant_images():
    """Every image the same: whatever varies elsewhere is no part of the statistics, and the answer on it is exact."""
    pixels = np.full((20, 3, 8, 8), 77, np.uint8)
    calibration = calibration_images.of(pixels, np.arange(20) % 5)
    for widths in (NARROW, FULL):
        model = cut_one("plain", widths, calibration=calibration).model
        (_, images), *_ = calibration.batches(np.arange(2))
        torch.testing.assert_close(logits(model, images), logits(vit_variants.make("plain"), images), atol=2e-3, rtol=0)


@pytest.mark.parametrize("variant", ["plain", "qk_norm", "pre_norm", "avg_pool"])
def test_a_model_that_says_nothing(variant):
    """All weights zero but the norms': every covariance is zero."""
    model = vit_variants.make(variant)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
    base, calibration = to_rms(model), calibration_images.calibration()
    sums = collect(base, calibration, gradients=True)
    for options in (Options(), Options(fisher=0.3)):
        made = cut(base, sums, calibration, [CutGroup((0, 1), NARROW)], options)[0].model
        torch.testing.assert_close(logits(made), torch.zeros(4, 5))


def test_a_class_without_images():
    base, calibration = to_rms(vit_variants.make("plain")), calibration_images.calibration(classes=4)
    sums = collect(base, calibration)
    with pytest.raises(DataError, match="class 4 has no calibration images"):
        cut(base, sums, calibration, [CutGroup((0, 4), NARROW)])
    with pytest.raises(DataError, match="class 4 has no images in the statistics"):
        cut(base, sums, calibration_images.calibration(), [CutGroup((0, 4), NARROW)])
    assert cut(base, sums, calibration, [CutGroup((0, 1), NARROW)])  # a foreign one may be missing


def test_refusals():
    model, calibration = vit_variants.make("plain"), calibration_images.calibration()
    base = to_rms(model)
    sums = collect(base, calibration)
    with pytest.raises(BuildError, match="to_rms"):
        cut(model, sums, calibration, [CutGroup((0, 1), NARROW)])
    wide = Widths(dim=24, blocks=(*FULL.blocks[:2], BlockWidths(heads=3, head_dim=8, hidden=56)))
    with pytest.raises(ConfigError, match=r"blocks\.2\.hidden: cannot keep 56 of 48"):
        cut(base, sums, calibration, [CutGroup((0, 1), wide)])
    with pytest.raises(ConfigError, match="blocks: cannot keep 2 of 3"):
        cut(base, sums, calibration, [CutGroup((0, 1), Widths(dim=16, blocks=FULL.blocks[:2]))])
    with pytest.raises(ConfigError, match="statistics without gradients"):
        cut(base, sums, calibration, [CutGroup((0, 1), NARROW)], Options(fisher=0.3))
    with torch.no_grad():
        base.blocks[0].mlp.fc2.weight[0, 0] = float("nan")
    with pytest.raises(BuildError, match="NaN or infinite"):
        cut(base, sums, calibration, [CutGroup((0, 1), NARROW)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_a_gpu_cuts_what_the_cpu_cuts(variant):
    """Statistics, fitted widths and cut, all of them on either."""
    calibration, cuts = calibration_images.calibration(), []
    for where in (CPU, TorchDevice("cuda:0")):
        base = to_rms(vit_variants.make(variant)).to(where.name)
        with where.default():
            sums = collect(base, calibration, gradients=True)
            groups = [CutGroup((0, 1), NARROW), CutGroup((2, 3, 4), NARROW)]
            fitted = Widths(dim=16, blocks=(BlockWidths(heads=3, head_dim=4, hidden=16),) * 3)
            groups.append(fit_group(base, sums, calibration, CutGroup((0, 1), fitted), Options(fisher=0.3)))
            cuts.append(cut(base, sums, calibration, groups, Options(fisher=0.3)))
    for cpu, gpu in zip(*cuts, strict=True):
        assert {parameter.device.type for parameter in gpu.model.parameters()} == {"cuda"}
        assert backbone.describe(cpu.model) == backbone.describe(gpu.model)
        torch.testing.assert_close(logits(gpu.model.cpu()), logits(cpu.model), atol=1e-3, rtol=1e-3)
        assert gpu.energy == pytest.approx(cpu.energy, abs=1e-5)
        assert gpu.after_ffn == pytest.approx(cpu.after_ffn, abs=1e-4)
