from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax

from digit_images import HOW, train_and_validation
from edvit.builder.subspace import attention
from edvit.builder.train.augment import UNLABELLED, Augmentation, Views
from edvit.builder.train.base import BaseTraining, accuracy, logits_of, train_base
from edvit.builder.train.recover import Recovery, Student, label_loss, own_or_other, recover, soft_loss, stream_loss
from edvit.builder.train.teacher import open_views, write_view
from edvit.builder.train.training import Schedule
from edvit.builder.vit import backbone, importance, surgery
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.shape.vit import pruned_widths

torch.set_num_threads(1)
STILL = Augmentation()
BLOCKS = (2, 4)

# --- laws --------------------------------------------------------------------------------------------------

labels_in_ten = st.lists(st.integers(0, 9), min_size=1, max_size=60).map(lambda values: np.array(values, np.int64))
groups = st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True).map(lambda group: tuple(sorted(group)))


@given(labels_in_ten, groups)
def test_own_labels_are_places_in_the_group_and_the_rest_is_other(labels, group):
    own = own_or_other(labels, group)
    assert own.dtype == torch.int64
    for label, place in zip(labels.tolist(), own.tolist(), strict=True):
        assert place == (group.index(label) if label in group else len(group))


def test_a_group_of_all_classes_has_no_other():
    labels = np.array([0, 1, 2, 1])
    own = own_or_other(labels, (0, 1, 2))
    assert own.tolist() == labels.tolist()


def test_images_without_a_label_stay_without():
    assert own_or_other(np.array([3, UNLABELLED, 1, UNLABELLED]), (1,)).tolist() == [1, UNLABELLED, 0, UNLABELLED]
    assert own_or_other(np.array([UNLABELLED]), (0, 2)).tolist() == [UNLABELLED]


def test_the_label_loss_is_cross_entropy_where_there_are_labels_and_nothing_where_there_are_none():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 2, 1, 1, 0])
    assert label_loss(scores, labels, 0.1).item() == pytest.approx(F.cross_entropy(scores, labels, label_smoothing=0.1))
    some = torch.where(torch.tensor([True, False] * 3), labels, UNLABELLED)
    half = F.cross_entropy(scores[::2], labels[::2], label_smoothing=0.1) / 2
    assert label_loss(scores, some, 0.1).item() == pytest.approx(half)
    assert label_loss(scores, torch.full((6,), UNLABELLED), 0.1).item() == 0


scores = arrays(np.float32, (3, 5), elements=st.floats(-8, 8, width=32))


@given(scores, scores, st.floats(0.5, 8))
def test_the_soft_loss_is_the_kl_of_softened_scores(student, teacher, temperature):
    expected = rel_entr(
        softmax(teacher.astype(np.float64) / temperature, 1), softmax(student.astype(np.float64) / temperature, 1)
    )
    found = soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature).item()
    assert found == pytest.approx(expected.sum(axis=1).mean() * temperature**2, abs=1e-4, rel=1e-4)


def test_the_soft_loss_is_least_where_student_and_teacher_agree():
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    student = (teacher + 5.0).requires_grad_()  # a constant changes no probability
    loss = soft_loss(student, teacher, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5


# --- on digits ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Data, a base model trained for a few seconds, and its outputs on two views."""
    folder = tmp_path_factory.mktemp("recover")
    train, validation = train_and_validation(folder / "digits", 700)
    model = backbone.create("vit_digits_patch4_8", channels=1, classes=10)
    how = BaseTraining(Schedule(epochs=12, lr=2e-3, warmup_epochs=1.0), batch_size=64)
    model = train_base(model, Views(train, STILL, 0), how, mean=HOW.mean, std=HOW.std, seed=0).model
    views = Views(train, STILL, 1)
    extractor = FeatureExtractor(model, HOW.mean, HOW.std)
    folders = [folder / str(view) for view in range(2)]
    for view in range(2):
        folders[view].mkdir()
        write_view(extractor, views, view, folders[view], blocks=BLOCKS)
    return model, train, validation, views, open_views(folders)


def selected(model, train, heads_pruned=3):
    pixels = (torch.from_numpy(train.pixels()[:16]).float() / 255 - 0.5) / 0.5
    base = backbone.describe(model)
    target = pruned_widths(base.widths, heads_pruned, "dims")
    return surgery.select(importance.score(model, pixels, criterion="magnitude"), base, target)


def pruned(model, train):
    return surgery.prune(model, selected(model, train))


def measured(model, images):
    return accuracy(logits_of(FeatureExtractor(model, HOW.mean, HOW.std), images), images)


def how(**more):
    return Recovery(Schedule(epochs=4, lr=2e-3, warmup_epochs=0.5), batch_size=32, **more)


def recovered(taught, classes, how, seed=0):
    model, train, _, views, outputs = taught
    selection = selected(model, train)
    return recover(
        surgery.prune(model, selection),
        classes,
        views,
        outputs,
        how,
        rotation=attention.selection(selection.dim, 96).float(),
        blocks=BLOCKS,
        mean=HOW.mean,
        std=HOW.std,
        seed=seed,
    ).model


def test_the_base_learns(taught):
    model, _, validation, *_ = taught
    assert measured(model, validation) > 0.8


def test_training_improves_on_the_pruned_model(taught):
    model, train, validation, *_ = taught
    before = measured(pruned(model, train), validation)
    trained = recovered(taught, (1, 4, 8), how())
    assert trained.head.out_features == 10
    assert backbone.describe(trained).widths == backbone.describe(pruned(model, train)).widths
    assert measured(trained, validation) > before + 0.15


def test_a_single_group_of_all_classes_is_trained_too(taught):
    model, train, validation, *_ = taught
    trained = recovered(taught, tuple(range(10)), how())
    assert measured(trained, validation) > measured(pruned(model, train), validation) + 0.15


def test_the_seed_decides_and_the_base_stays_as_it_is(taught):
    model = taught[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    short = Recovery(Schedule(epochs=1, lr=1e-3), batch_size=128)
    one, again, other = (recovered(taught, (0, 1), short, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_epoch_sees_the_next_view_with_its_labels_and_outputs(taught):
    model, train, validation, views, outputs = taught
    batches, labels, lessons = [], [], []

    class NotedViews(Views):
        def batch(self, view, *args):
            batches.append(view)
            return super().batch(view, *args)

        def labels(self, view):
            labels.append(view)
            return super().labels(view)

    class NotedOutputs(list):
        def __getitem__(self, view):
            lessons.append(view)
            return super().__getitem__(view)

    noted = NotedViews(views.images, views.augmentation, views.seed)
    one_step = Recovery(Schedule(epochs=5, lr=1e-3), batch_size=len(train))
    recovered((model, train, validation, noted, NotedOutputs(outputs)), (0, 1), one_step)
    assert batches == labels == lessons == [0, 1, 0, 1, 0]


def test_own_head_starts_from_the_base_models_head(taught):
    model = taught[0]
    extractor = FeatureExtractor(model, HOW.mean, HOW.std)
    student = Student(extractor, (2, 5), torch.eye(96), BLOCKS)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        said = student(images)
        assert torch.allclose(said.feature, extractor(images), atol=1e-5), "before training it is the teacher's"
    assert torch.allclose(said.own[:, :2], said.scores[:, [2, 5]], atol=1e-5)
    foreign = [0, 1, 3, 4, 6, 7, 8, 9]
    assert torch.allclose(said.own[:, 2], said.scores[:, foreign].mean(dim=1), atol=1e-5)
    assert [stream.shape for stream in said.streams] == [(3, 5, 96)] * 2


def test_the_stream_loss_is_relative_to_each_tokens_length():
    teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(2, 3, 4, 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.1
    assert stream_loss(teacher, teacher).item() == 0.0
    assert stream_loss(lengths * teacher * 1.5, lengths * teacher).item() == pytest.approx(0.25, rel=1e-5)
    assert stream_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(1.0)


@pytest.mark.parametrize("off", ["own_weight", "logits_weight", "features_weight", "streams_weight"])
def test_every_loss_counts(taught, off):
    short = {"schedule": Schedule(epochs=1, lr=1e-3), "batch_size": 256}
    all_of_them = recovered(taught, (0, 1), Recovery(**short))
    without = recovered(taught, (0, 1), Recovery(**short, **{off: 0.0}))
    assert not torch.equal(all_of_them.cls_token, without.cls_token)


def test_label_loss_weighs_classes():
    scores, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, UNLABELLED, 1, 1])
    weights = torch.tensor([2.0, 0.5, 1.0])
    found = label_loss(scores, labels, 0.0, weights)
    picked = scores.log_softmax(dim=1)[[0, 1, 2, 4, 5], labels[labels != UNLABELLED]]
    torch.testing.assert_close(found, -(picked * weights[labels[labels != UNLABELLED]]).sum() / 6)
