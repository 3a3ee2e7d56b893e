from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edvit.builder.train.fusion import Fusion
from edvit.builder.train.temperature import BINS, LEAST, MOST, Reliability, fit_temperature


def drawn(temperature, images=20_000, classes=7, seed=0):
    """Logits, and labels that are drawn by their softmax at a temperature."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(images, classes))
    noise = random.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_labels_are_likeliest_at_it():
    logits, labels = drawn(1.7, images=500)

    def loss(temperature):
        return F.cross_entropy(torch.from_numpy(logits / temperature), torch.from_numpy(labels)).item()

    best = min((loss(t), t) for t in np.geomspace(LEAST, MOST, 4001))
    assert loss(fit_temperature(logits, labels)) == pytest.approx(best[0], abs=1e-7)


def test_labels_that_are_all_right_or_all_wrong_end_at_the_bounds():
    logits = np.eye(3) * 5
    assert fit_temperature(logits, np.arange(3)) == pytest.approx(LEAST, rel=1e-3)
    assert fit_temperature(logits, (np.arange(3) + 1) % 3) == pytest.approx(MOST, rel=1e-3)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0


def test_scaled_probabilities_are_reliable():
    logits, labels = drawn(2.0)
    assert Reliability.of(logits, labels).error > 0.1
    assert Reliability.of(logits / fit_temperature(logits, labels), labels).error < 0.02


@given(
    arrays(np.float32, (30, 4), elements=st.floats(-20, 20, width=32)),
    arrays(np.int64, 30, elements=st.integers(0, 3)),
)
def test_reliability_agrees_with_counting(logits, labels):
    bins = [[] for _ in range(BINS)]
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        probabilities = torch.from_numpy(row).softmax(0).numpy()
        best = float(probabilities.max())
        # An edge between two bins may fall to either side by rounding.
        if abs(best * BINS - round(best * BINS)) < 1e-9 and best < 1 - 1e-9:
            return
        bins[min(int(best * BINS), BINS - 1)].append((best, row.argmax() == label))
    error = sum(abs(np.mean([p for p, _ in of]) - np.mean([c for _, c in of])) * len(of) for of in bins if of) / 30
    found = Reliability.of(logits, labels)
    assert found.images.tolist() == [len(of) for of in bins]
    assert found.error == pytest.approx(error, abs=1e-9)


def test_nothing_has_no_error():
    assert Reliability.of(np.zeros((0, 3)), np.zeros(0, np.int64)).error == 0.0


def test_a_cooled_fusion_divides_its_scores():
    torch.manual_seed(0)
    fusion = Fusion([3, 5], hidden=4, classes=6).eval()
    features, present = torch.randn(9, 8), torch.ones(9, 2)
    present[::2, 0] = 0
    with torch.inference_mode():
        before = fusion(features, present)
        fusion.cool(1.6)
        torch.testing.assert_close(fusion(features, present), before / 1.6)
