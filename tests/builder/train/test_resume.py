"""A training that is interrupted after any step and goes on from its checkpoint ends with the same bytes and course."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from digit_images import HOW, train_and_validation
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.subspace import attention
from edvit.builder.train.augment import GLYPHS, Views
from edvit.builder.train.base import BaseTraining, features_of, train_base
from edvit.builder.train.fusion import FusionTraining, Samples, train_fusion
from edvit.builder.train.recover import Recovery, recover
from edvit.builder.train.teacher import open_views, write_view
from edvit.builder.train.training import Schedule, train
from edvit.builder.vit import backbone, importance, surgery
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.vit import pruned_widths
from killing import KilledError, interrupted

torch.set_num_threads(1)
anywhere = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one, other):
    """Whether two trainings gave the same bytes and the same course."""
    if one.curve != other.curve:
        return False
    one, other = one.model.state_dict(), other.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is trained ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train_and_validation(tmp_path_factory.mktemp("digits"), 160)[0]


def small_vit():
    torch.manual_seed(0)
    return backbone.create("vit_digits_patch4_8", channels=1, classes=10)


@pytest.fixture(scope="module")
def base(digits):
    how = BaseTraining(Schedule(epochs=3, lr=1e-3, ema_decay=0.99, layer_decay=0.75), batch_size=32)

    def training(**more):
        return train_base(small_vit(), Views(digits, GLYPHS, 0), how, mean=HOW.mean, std=HOW.std, seed=3, **more)

    return training


@pytest.fixture(scope="module")
def recovery(digits, tmp_path_factory):
    model, views = small_vit().eval(), Views(digits, GLYPHS, 1, mix=0.5)
    folders = [tmp_path_factory.mktemp(str(view)) for view in range(2)]
    for view, folder in enumerate(folders):
        write_view(FeatureExtractor(model, HOW.mean, HOW.std), views, view, folder, blocks=(2, 4))
    widths = pruned_widths(backbone.describe(model).widths, 3, "dims")
    scores = importance.score(model, torch.zeros(2, 1, 8, 8), criterion="magnitude")
    selection = surgery.select(scores, backbone.describe(model), widths)
    how = Recovery(Schedule(epochs=3, lr=1e-3, warmup_epochs=1.0, ema_decay=0.995), batch_size=32)

    def training(**more):
        return recover(
            surgery.prune(model, selection),
            (1, 4, 8),
            views,
            open_views(folders),
            how,
            rotation=attention.selection(selection.dim, 96).float(),
            blocks=(2, 4),
            mean=HOW.mean,
            std=HOW.std,
            seed=0,
            **more,
        )

    return training


@pytest.fixture(scope="module")
def fusion():
    draws = torch.Generator().manual_seed(0)
    seen = Samples(torch.randn(120, 6, generator=draws), torch.randint(4, (120,), generator=draws))
    held_out = Samples(torch.randn(40, 6, generator=draws), torch.randint(4, (40,), generator=draws))
    heads = [nn.Linear(3, 4), nn.Linear(3, 4)]
    how = FusionTraining(Schedule(epochs=4, lr=5e-3, ema_decay=0.9), batch_size=30, drop=0.3)

    def training(**more):
        teacher = torch.nn.functional.one_hot(seen.labels, 4).float()
        return train_fusion(seen, teacher, held_out, heads=heads, hidden=8, how=how, seed=0, **more)

    return training


@pytest.mark.parametrize(("name", "epochs"), [("base", 3), ("recovery", 3), ("fusion", 4)])
def test_it_ends_with_the_same_bytes_and_the_same_course(name, epochs, request, tmp_path_factory):
    training = request.getfixturevalue(name)
    steps = []
    whole = training(progress=lambda done, total: steps.append(done))
    assert len(whole.curve.loss) == epochs
    assert len(whole.curve.validation) == (epochs if name == "fusion" else 0)

    @anywhere
    @given(st.integers(1, len(steps) - 1))
    def law(step):
        again, first = interrupted(training, tmp_path_factory.mktemp("kept"), step)
        assert first == step
        assert same(again, whole)

    law()


def test_the_best_so_far_is_kept_over_an_interruption(tmp_path):
    """The judge likes what comes after the first of four epochs; the training is interrupted in the third."""

    def training(**more):
        torch.manual_seed(0)
        verdicts = iter([0.0, 2.0, 3.0, 4.0][training.judged :])

        def judge(module):
            training.judged += 1
            return next(verdicts)

        def batches(epoch, first):
            for _ in range(first, 3):
                yield torch.ones(2, 3)

        return train(
            nn.Linear(3, 1),
            batches,
            lambda module, batch: module(batch).square().mean(),
            steps_per_epoch=3,
            schedule=Schedule(epochs=4, lr=0.1),
            generator=torch.Generator(),
            judge=judge,
            **more,
        )

    training.judged = 0
    whole = training()
    training.judged = 0
    again, _ = interrupted(training, tmp_path, 7)
    assert same(again, whole)


def test_a_training_that_ended_is_not_trained_again(base, tmp_path):
    """What its job does with the model afterwards may take minutes."""
    whole, steps = base(checkpoint=Checkpoint(tmp_path, "key")), []
    again = base(checkpoint=Checkpoint(tmp_path, "key"), progress=lambda done, total: steps.append(done == total))
    assert steps == [True]
    assert same(again, whole)


def test_the_fusion_that_was_judged_best_is_kept_by_the_last_checkpoint(fusion, tmp_path):
    whole = fusion(checkpoint=Checkpoint(tmp_path, "key"))
    assert same(fusion(checkpoint=Checkpoint(tmp_path, "key")), whole)


def test_features_go_on_and_end_with_the_same_bytes(digits, tmp_path):
    extractor, batch = FeatureExtractor(small_vit().eval(), HOW.mean, HOW.std), 16
    whole, calls = features_of(extractor, digits, batch), []
    batches = -(-len(digits) // batch)

    @anywhere
    @given(st.integers(1, batches - 1))
    def law(killed):
        calls.clear()

        def forward(image):
            calls.append(len(image))
            if len(calls) > killed:
                raise KilledError
            return FeatureExtractor.forward(extractor, image)

        folder = tmp_path / str(killed)
        folder.mkdir(exist_ok=True)
        (folder / "state.pt").unlink(missing_ok=True)
        extractor.forward = forward
        with pytest.raises(KilledError):
            features_of(extractor, digits, batch, checkpoint=Checkpoint(folder, "key", every_s=0))
        extractor.forward = lambda image: calls.append(len(image)) or FeatureExtractor.forward(extractor, image)
        calls.clear()
        assert torch.equal(features_of(extractor, digits, batch, checkpoint=Checkpoint(folder, "key")), whole)
        assert len(calls) == batches - killed

    law()
    del extractor.forward


def test_a_view_of_the_teacher_goes_on_and_ends_with_the_same_bytes(tmp_path):
    train_images, _ = train_and_validation(tmp_path / "digits", 600)
    views, extractor = Views(train_images, GLYPHS, 3), FeatureExtractor(small_vit().eval(), HOW.mean, HOW.std)

    def written(name, **more):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_view(extractor, views, 1, folder, blocks=(1,), **more)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    whole = written("whole")
    kept = tmp_path / "kept"
    kept.mkdir()
    again, first = interrupted(lambda **more: written("resumed", **more), kept, 2)
    assert first == 256
    assert again == whole
    (kept / "logits.npy").write_bytes(b"damaged")
    assert written("anew", checkpoint=Checkpoint(kept, "key")) == whole


# --- the file -----------------------------------------------------------------------------------------------


def test_a_state_comes_back_and_only_under_its_own_key(tmp_path):
    state = {
        "weight": torch.arange(5.0),
        "least": float("inf"),
        "none": None,
        "groups": [{"lr": 0.1, "betas": (0.9, 1)}],
    }
    Checkpoint(tmp_path, "key").save(state, 3, 10)
    found = Checkpoint(tmp_path, "key").load()
    assert torch.equal(found.pop("weight"), state.pop("weight"))
    assert {name: found[name] for name in state} == state
    assert Checkpoint.steps(tmp_path) == (3, 10)
    assert Checkpoint(tmp_path, "other").load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"], "one file"


def test_no_state_is_none(tmp_path):
    assert Checkpoint(tmp_path, "key").load() is None
    assert Checkpoint.steps(tmp_path) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Checkpoint(folder, "key").save({"weight": torch.arange(100.0)}, 3, 10)
    return (folder / "state.pt").read_bytes()


@anywhere
@given(st.data())
def test_a_damaged_file_is_never_taken_for_another_state(saved, tmp_path, data):
    place = data.draw(st.integers(0, len(saved) - 1))
    damaged = bytearray(saved)
    if data.draw(st.booleans()):
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[place:]
    (tmp_path / "state.pt").write_bytes(damaged)
    found = Checkpoint(tmp_path, "key").load()
    assert found is None or np.array_equal(found["weight"], np.arange(100.0))


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"key": "key", "done": 1, "total": 2, "code": Code()}, tmp_path / "state.pt")
    assert Checkpoint(tmp_path, "key").load() is None
    assert Checkpoint.steps(tmp_path) is None


def test_it_is_due_when_the_time_is_over(tmp_path):
    now = [0.0]
    checkpoint = Checkpoint(tmp_path, "key", every_s=60, clock=lambda: now[0])
    seen = []
    for now[0] in (0.0, 59.0, 60.0, 90.0, 119.0, 121.0):
        seen.append(checkpoint.due)
        if checkpoint.due:
            checkpoint.save({}, 1, 2)
    assert seen == [False, False, True, False, False, True]
