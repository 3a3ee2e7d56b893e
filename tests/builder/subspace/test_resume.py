"""Statistics, fitted widths and cuts that are interrupted after any step end with the same bytes."""

from __future__ import annotations

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

import calibration_images
import vit_variants
from edvit.builder.subspace import cut as cut_module
from edvit.builder.subspace import statistics
from edvit.builder.subspace.cut import CutGroup, Options, bin_weights, cut, group_rows, state_bytes
from edvit.builder.subspace.losses import estimate_losses
from edvit.builder.subspace.rms import to_rms
from edvit.builder.vit import backbone
from edvit.shape.vit import BlockWidths, Widths
from killing import interrupted

NARROW = Widths(dim=16, blocks=(BlockWidths(heads=3, head_dim=4, hidden=16),) * 3)
GROUPS = [CutGroup((0, 1), NARROW), CutGroup((2, 3, 4), NARROW), CutGroup((0, 4), NARROW)]
OPTIONS = Options(fisher=0.3)


@pytest.fixture(scope="module")
def calibration():
    return calibration_images.calibration(batch_size=5)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return to_rms(vit_variants.make("pre_norm"))


@pytest.fixture(scope="module")
def sums(base, calibration):
    return statistics.collect(base, calibration, gradients=True)


def test_statistics(base, calibration, sums, tmp_path_factory):
    done = [12 * index + part for index in range(5) for part in (5, 10, 12)]
    for step in range(1, 15):
        again, first = interrupted(
            lambda **more: statistics.collect(base, calibration, gradients=True, **more),
            tmp_path_factory.mktemp("kept"),
            step,
        )
        assert first == done[step - 1]
        for field in fields(sums):
            assert torch.equal(getattr(again, field.name), getattr(sums, field.name)), field.name


def test_losses_that_widths_are_fitted_to(base, calibration, sums, tmp_path_factory):
    rows, weights = group_rows(calibration.labels, (0, 1), OPTIONS, 0)
    of_group = sums.weighted(bin_weights(sums, (0, 1), OPTIONS.foreign))

    def work(**more):
        return estimate_losses(base, of_group, calibration, rows, weights, fisher=0.3, **more)

    whole, steps = work(), -(-len(rows) // 5)
    for step in range(1, steps):
        again, first = interrupted(work, tmp_path_factory.mktemp("kept"), step)
        assert first == 5 * step
        for name, value in asdict(whole).items():
            assert np.array_equal(getattr(again, name), value)


@pytest.fixture(params=[1, 2])
def chunks(request, base, calibration, monkeypatch):
    """Into how many chunks the groups are cut: in two, the third group is cut behind the others."""
    if request.param == 2:
        images = [len(group_rows(calibration.labels, group.classes, OPTIONS, 0)[0]) for group in GROUPS]
        two = state_bytes(backbone.describe(base), 60, [(count, NARROW) for count in images[:2]])
        monkeypatch.setattr(cut_module, "STATE_LIMIT_BYTES", two)
    return request.param


def test_cuts(base, calibration, sums, tmp_path_factory, chunks):
    def work(**more):
        return cut(base, sums, calibration, GROUPS, OPTIONS, **more)

    whole, halves = work(), 6 * chunks
    for step in range(1, halves):
        again, first = interrupted(work, tmp_path_factory.mktemp("kept"), step)
        assert first == step
        for one, other in zip(again, whole, strict=True):
            assert one.energy == other.energy
            assert (one.after_attention, one.after_ffn) == (other.after_attention, other.after_ffn)
            assert torch.equal(one.rotation, other.rotation)
            for name, value in other.model.state_dict().items():
                assert torch.equal(one.model.state_dict()[name], value), name
