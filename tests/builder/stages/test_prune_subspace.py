from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from edvit.builder.models import checkpoint
from edvit.builder.models.family import Kept, kept_importance
from edvit.builder.pipeline import make_plan, prune
from edvit.builder.stages import prune_channels, prune_subspace
from edvit.builder.stages.base import load_extractor, weights_path
from edvit.builder.stages.prune import Group, calibration_rows, load_kept, load_rotation
from edvit.builder.stages.prune_subspace import options_of
from edvit.builder.stages.source import open_source
from edvit.builder.subspace import statistics
from edvit.builder.subspace.cut import Options
from edvit.builder.subspace.rms import to_rms
from edvit.builder.train import base
from edvit.builder.vit import backbone
from edvit.builder.vit.scores import Scores
from edvit.builder.vit.surgery import BlockSelection, Selection
from edvit.errors import ConfigError, ModelError
from edvit.plan.cost import model_cost
from edvit.shape.vit import Architecture
from tiny_build import opened, tiny_config

torch.set_num_threads(1)


def pruned(work, keep=None, groups=((0, 1, 2), tuple(range(3, 10))), **settings):
    """Data, base model, groups and their pruned models."""
    config = tiny_config(**({"keep": keep} if keep else {}), **settings)
    build = opened(config, work)
    widths = make_plan(config, build.source).submodels[0].architecture.widths
    wanted = [Group(classes, widths) for classes in groups]
    made = prune(build.runner, config, build.data, build.base, wanted, source=build.source, device=build.device)
    return build.data, build.base, wanted, made


def model_of(artifact):
    return checkpoint.load_model(weights_path(artifact))


@pytest.mark.parametrize("pruner", ["subspace", "channels"])
def test_both_pruners_leave_the_same_things(work, pruner):
    data, _, groups, artifacts = pruned(work, prune=pruner)
    for group, artifact in zip(groups, artifacts, strict=True):
        model, q, kept = model_of(artifact), load_rotation(artifact), load_kept(artifact)
        shape = backbone.describe(model)
        assert shape.widths == group.widths
        assert shape.rotated == (pruner == "subspace")
        assert shape.classes == 10, "its head scores every class"
        assert q.shape == (24, group.widths.dim)
        assert torch.allclose(q.T @ q, torch.eye(group.widths.dim), atol=1e-5)
        assert len(kept.attention) == len(kept.ffn) == 2
        assert (kept.energy is None) == (pruner == "channels")
        assert sum(kept.channels) == (0 if pruner == "subspace" else group.widths.dim)
        extractor = load_extractor(artifact, open_source(tiny_config()).preprocessing)
        assert artifact.note["validation"] == base.accuracy(base.logits_of(extractor, data.validation), data.validation)


@pytest.mark.parametrize("pruner", ["subspace", "channels"])
def test_the_stream_stands_in_for_the_base_models_times_q(work, pruner):
    """At full width exactly, so the recovery's targets are those of the form that was pruned."""
    data, trained, _, (artifact, _) = pruned(work, keep="1/1", prune=pruner)
    whole = to_rms(trained.model) if pruner == "subspace" else trained.model
    how = open_source(tiny_config()).preprocessing
    images = torch.from_numpy(data.validation.pixels()[:5])
    with torch.inference_mode():
        feature, streams = load_extractor(artifact, how).follow(images, (0, 1))
        expected, targets = backbone.FeatureExtractor(whole, how.mean, how.std).follow(images, (0, 1))
    q = load_rotation(artifact)
    assert torch.allclose(feature, expected @ q, atol=1e-3)
    for stream, target in zip(streams, targets, strict=True):
        assert torch.allclose(stream, target @ q, atol=1e-3)


def test_subspaces_keep_more_than_channels(work):
    found = {}
    for pruner in ("subspace", "channels"):
        _, trained, _, artifacts = pruned(work, keep="1/3", prune=pruner, calibration=200)
        found[pruner] = np.mean([artifact.note["validation"] for artifact in artifacts])
    assert trained.artifact.note["validation"] > 0.8
    assert found["subspace"] > found["channels"] + 0.1


def test_calibration_images_are_spread_over_the_classes(work):
    data, *_ = pruned(work)
    counts = np.bincount(data.train.labels)
    for classes, count in (((2, 5, 7), 16), ((0, 1), 1), (tuple(range(10)), 10**6)):
        rows = calibration_rows(data.train, classes, count, seed=3)
        found = np.bincount(data.train.labels[rows], minlength=10)
        assert np.array_equal(rows, np.unique(rows))
        assert found.sum() == min(max(count, len(classes)), counts[list(classes)].sum())
        assert set(np.flatnonzero(found)) == set(classes)
        if count < 1000:
            assert np.ptp(found[list(classes)]) <= 1


def test_groups_are_cut_once_and_a_new_one_alone(work):
    *_, first = pruned(work)
    *_, again = pruned(work)
    assert first == again
    *_, other = pruned(work, groups=((0, 1, 2), (3, 4), tuple(range(3, 10))))
    assert other[1].digest != other[2].digest


def test_a_build_that_was_stopped_while_cuts_were_kept_does_not_cut_again(work, monkeypatch):
    *_, whole = pruned(work)
    for artifact in whole:
        shutil.rmtree(artifact.folder)
    monkeypatch.setattr(prune_subspace, "cut", None)  # not called
    *_, again = pruned(work)
    assert [artifact.digest for artifact in again] == [artifact.digest for artifact in whole]


def test_statistics_by_group_where_those_by_class_are_too_large(work, monkeypatch):
    *_, artifacts = pruned(work)
    by_class = [artifact.note["validation"] for artifact in artifacts]
    shutil.rmtree(work)
    architecture = Architecture.model_validate(make_plan(tiny_config(), open_source(tiny_config())).base)
    needed = statistics.sums_bytes(architecture.rotated_form(), 10, gradients=True)
    monkeypatch.setattr(statistics, "SUMS_LIMIT_BYTES", needed - 1)
    *_, by_group = pruned(work)
    stage = next(work.glob("statistics-*"))
    assert statistics.Sums.load(stage / "sums.safetensors").bins == 2
    for one, other in zip(by_class, by_group, strict=True):
        share = abs(one - other.note["validation"])
        assert share < 0.05, "sums over classes and over groups are the same sums"


def test_other_widths_are_cut_from_the_same_scores(work):
    pruned(work, prune="channels")
    scored = {path: path.stat().st_mtime_ns for path in work.glob("scores-*")}
    *_, narrow = pruned(work, prune="channels", keep="1/3")
    assert len(scored) == 4, "sixteen images of each group, in two parts"
    assert {path: path.stat().st_mtime_ns for path in work.glob("scores-*")} == scored
    assert backbone.describe(model_of(narrow[0])).widths.dim == 8


def test_steps_can_be_left_out(work):
    everything = options_of(tiny_config())
    assert everything == Options(fisher=0.3)
    bare = tiny_config(without=("rotation", "factors", "readers", "writers", "correction"))
    assert options_of(bare) == Options(
        rotate=False, fisher=None, low_rank=False, refit_readers=False, refit_writers=False, correct_errors=False
    )
    assert options_of(tiny_config(without=("fisher",))) == Options(fisher=None)
    with pytest.raises(ConfigError, match="without"):
        tiny_config(without=("luck",))
    *_, (whole, _) = pruned(work)
    *_, (less, _) = pruned(work, without=("writers",))
    assert whole.digest != less.digest


def test_fitted_widths_are_each_groups_own_and_cost_no_more(work):
    _, _, groups, artifacts = pruned(
        work, keep="1/2", model="vit_digits_patch4_8", base_epochs=1, groups=((0, 1), (8, 9))
    )
    made = [backbone.describe(model_of(artifact)) for artifact in artifacts]
    assert any(one.widths != group.widths for one, group in zip(made, groups, strict=True))
    for one, group in zip(made, groups, strict=True):
        budget = model_cost(one.model_copy(update={"widths": group.widths, "classes": 0}))
        cost = model_cost(one.model_copy(update={"classes": 0}))
        assert cost.params <= budget.params
        assert cost.flops <= budget.flops
        assert cost.peak_memory_bytes <= budget.peak_memory_bytes
    with pytest.raises(ConfigError, match=r"widths: .*fitted goes with subspace"):
        tiny_config(widths="fitted", prune="channels")


def test_a_stopped_build_keeps_the_parts_of_a_group_that_are_scored(work, monkeypatch):
    monkeypatch.setattr(prune_channels, "SCORED_BY_JOB", 8)
    settings = {"prune": "channels", "calibration": 24, "workers": 1, "groups": (tuple(range(10)),)}
    *_, (whole,) = pruned(work, **settings)
    assert len(list(work.glob("scores-*"))) == 3
    for path in (*work.glob("scores-*"), *work.glob("prune-*")):
        shutil.rmtree(path)
    score, calls = prune_channels.Score.run, []

    def stopped(job, folder, progress):
        calls.append(job.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(job, folder, progress)

    monkeypatch.setattr(prune_channels.Score, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruned(work, **settings)
    assert len(list(work.glob("scores-*"))) == 2
    *_, (resumed,) = pruned(work, **settings)
    assert len(calls) == 4, "only the third part is scored again"
    assert resumed.digest == whole.digest


@pytest.mark.parametrize(("criterion", "stages"), [("fisher-kl", 3), ("kl", 3), ("magnitude", 1), ("random", 1)])
def test_images_are_scored_in_parts_where_they_are_looked_at(work, monkeypatch, criterion, stages):
    settings = {"prune": "channels", "criterion": criterion, "groups": (tuple(range(10)),)}
    if stages > 1:  # the others look at no image
        settings["calibration"] = 24
    monkeypatch.setattr(prune_channels, "SCORED_BY_JOB", 24)
    *_, (whole,) = pruned(work, **settings)
    kept = load_kept(whole)
    assert len(list(work.glob("scores-*"))) == 1
    shutil.rmtree(work)
    monkeypatch.setattr(prune_channels, "SCORED_BY_JOB", 8)
    *_, (in_parts,) = pruned(work, **settings)
    assert len(list(work.glob("scores-*"))) == stages
    assert load_kept(in_parts).ffn == pytest.approx(kept.ffn, abs=0.02)


def test_scoring_in_small_batches_gives_the_same(work, monkeypatch):
    asked = []
    monkeypatch.setattr(prune_channels, "images_within", lambda limit, architecture: asked.append(limit) or 3)
    *_, few = pruned(work, prune="channels", memory_limit_mb=1000, workers=1)
    assert asked == [1_000_000_000]
    monkeypatch.undo()
    shutil.rmtree(work)
    *_, many = pruned(work, prune="channels")
    assert [artifact.digest for artifact in few] == [artifact.digest for artifact in many]


@pytest.mark.parametrize(("workers", "parts"), [(1, 4), (3, 4), (8, 4), (64, 4), (8, 1)])
def test_all_that_scores_at_a_time_shares_the_memory(work, monkeypatch, workers, parts):
    """Two groups of sixteen images, in so many parts each: as many jobs may run at a time as there are workers."""
    shares = []
    monkeypatch.setattr(prune_channels, "images_within", lambda limit, architecture: shares.append(limit) or 32)
    monkeypatch.setattr(prune_channels, "SCORED_BY_JOB", 16 // parts)
    settings = {"prune": "channels", "criterion": "fisher-kl", "memory_limit_mb": 1000, "workers": workers}
    pruned(work, **settings)
    assert len(list(work.glob("scores-*"))) == 2 * parts
    at_a_time = min(workers, 2 * parts)
    assert shares == [1_000_000_000 // at_a_time]


def test_too_little_memory_to_score_in(work):
    with pytest.raises(ConfigError, match="give a larger --memory-limit"):
        pruned(work, prune="channels", memory_limit_mb=100)


def test_a_model_that_cannot_be_rotated_says_so_before_any_work():
    config = tiny_config(model="vit_test_build_max")
    with pytest.raises(ModelError, match="give --prune channels"):
        make_plan(config, open_source(config))


def test_kept_importance_is_the_share_of_the_scores():
    scores = Scores(
        dim=torch.tensor([1.0, 2.0, 3.0]),
        attn=torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        heads=torch.tensor([[3.0, 7.0], [0.0, 0.0]]),
        hidden=torch.tensor([[1.0, 1.0, 2.0], [5.0, 0.0, 0.0]]),
        criterion="fisher-kl",
    )
    one_head = BlockSelection(torch.tensor([1]), torch.tensor([[1]]), torch.tensor([2]))
    both_heads = BlockSelection(torch.tensor([0, 1]), torch.tensor([[0], [1]]), torch.tensor([1, 2]))
    kept = kept_importance(scores, Selection(torch.tensor([0, 2]), (one_head, both_heads)))
    assert kept == Kept(attention=(0.4, 1.0), ffn=(0.5, 0.0), channels=(True, False, True))
