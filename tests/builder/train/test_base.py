from __future__ import annotations

import numpy as np
import pytest
import torch

from digit_images import HOW, train_and_validation
from edvit.builder.train.augment import GLYPHS, Augmentation, Views
from edvit.builder.train.base import BaseTraining, accuracy, features_of, logits_of, train_base
from edvit.builder.train.training import Schedule
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train_and_validation(tmp_path_factory.mktemp("digits"), 500)


def fresh():
    torch.manual_seed(0)
    return backbone.create("vit_digits_patch4_8", channels=1, classes=10)


def trained(digits, augmentation=GLYPHS, seed=0, **more):
    how = BaseTraining(**{"schedule": Schedule(epochs=1, lr=1e-3), "batch_size": 50, **more})
    return train_base(fresh(), Views(digits[0], augmentation, 0), how, mean=HOW.mean, std=HOW.std, seed=seed).model


def test_features_and_scores_of_a_set_are_the_models(digits):
    _, validation = digits
    extractor = FeatureExtractor(fresh().eval(), HOW.mean, HOW.std)
    pixels = (torch.from_numpy(validation.pixels()).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        assert torch.allclose(logits_of(extractor, validation), extractor.model(pixels), atol=1e-5)
    assert torch.allclose(features_of(extractor, validation, batch=7), features_of(extractor, validation), atol=1e-5)
    assert features_of(extractor, validation).shape == (len(validation), 96)


def test_accuracy_is_the_share_of_right_answers(digits):
    _, validation = digits
    right = torch.nn.functional.one_hot(torch.from_numpy(validation.labels), 10).float()
    assert accuracy(right, validation) == 1.0
    assert accuracy(-right, validation) == 0.0
    assert accuracy(torch.zeros(len(validation), 10), validation) == np.mean(validation.labels == 0)


def test_training_learns(digits):
    schedule = Schedule(epochs=10, lr=2e-3, warmup_epochs=1.0)
    model = trained(digits, Augmentation(), schedule=schedule)
    assert not model.training
    logits = logits_of(FeatureExtractor(model, HOW.mean, HOW.std), digits[1])
    assert accuracy(logits, digits[1]) > 0.6


def test_the_seed_decides(digits):
    one = trained(digits).state_dict()
    again, other = trained(digits).state_dict(), trained(digits, seed=1).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["cls_token"], other["cls_token"])


def test_a_set_smaller_than_a_batch_is_trained_on(digits):
    few = (digits[0].take(np.arange(10)), digits[1])
    assert not torch.equal(trained(few).cls_token, fresh().cls_token)
