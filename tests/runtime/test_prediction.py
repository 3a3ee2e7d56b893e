from __future__ import annotations

import numpy as np
import pytest
import torch

from edvit.runtime.prediction import UNKNOWN, Prediction, Timings

CLASSES = ("cat", "dog", "unknown")


def prediction(logits, **more):
    timings = Timings(total_s=0.0, gather_s=0.0, slowest_run_s=0.0, fuse_s=0.0)
    return Prediction(logits=np.float32(logits), classes=CLASSES, missing=(), timings=timings, **more)


def test_an_image_below_the_probability_is_unknown_and_its_best_classes_are_named():
    logits = [[3.0, 0.0, 0.0], [0.2, 0.3, 0.1]]
    found = prediction(logits, unknown_below=0.5)
    assert found.unknown.tolist() == [False, True]
    assert found.labels == ("cat", UNKNOWN)
    assert found.indices.tolist() == [0, -1]
    known, unknown = found.answers
    assert (known.label, known.index, known.unknown) == ("cat", 0, False)
    assert (unknown.label, unknown.index, unknown.unknown) == (UNKNOWN, -1, True)
    assert [score.label for score in unknown.top] == ["dog", "cat", "unknown"]
    assert unknown.probability == pytest.approx(torch.tensor(logits[1]).softmax(0).max().item(), rel=1e-6)


def test_a_class_named_unknown_keeps_its_index():
    (answer,) = prediction([[0.0, 0.0, 9.0]], unknown_below=0.5).answers
    assert (answer.label, answer.index, answer.unknown) == (UNKNOWN, 2, False)


def test_without_a_probability_nothing_is_unknown():
    assert not prediction([[0.0, 0.0, 0.0]]).unknown.any()
    assert not prediction([[0.0, 0.0, 0.0]], unknown_below=1 / 3 - 1e-6).unknown.any()
