from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.builder.export.gptq import DAMPING, error, gptq, nearest
from edvit.builder.export.gptq import _in_order as in_order
from edvit.errors import BuildError
from edvit.runtime.engine.four_bits import BLOCK


def problem(inputs, outputs, seed=0, rows=200):
    """Weights, and calibration inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs))
    return rng.normal(size=(inputs, outputs)), x.T @ x


def damped(hessian):
    scaled = hessian / np.diag(hessian).mean()
    return scaled + DAMPING * np.eye(len(hessian))


def by_brute_force(weights, hessian, scale):
    """One input after the other is rounded, and all later weights are solved for anew, in full."""
    values, inputs = np.empty_like(weights), len(weights)
    left = weights.copy()
    for row in range(inputs):
        if row % BLOCK == 0:
            steps = in_order(left[row : row + BLOCK], np.diag(np.diag(hessian)[row : row + BLOCK]), scale)
            step = steps.packed.multipliers[0] * scale
        values[row] = np.clip(np.rint(left[row] / step), -8, 7) * step
        done, rest = slice(0, row + 1), slice(row + 1, inputs)
        # argmin over what is left of (w - v)' H (w - v), with v given for what is done
        moved = np.linalg.solve(hessian[rest, rest], hessian[rest, done] @ (weights[done] - values[done]))
        left[rest] = weights[rest] + moved
    return values


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (32, 4), (45, 3), (70, 2)])
def test_it_rounds_as_brute_force_does(inputs, outputs):
    weights, hessian = problem(inputs, outputs)
    hessian = damped(hessian)
    scale = nearest(weights, np.diag(hessian)).scale.astype(np.float64)
    found = in_order(weights, hessian, scale)
    assert found.values() == pytest.approx(by_brute_force(weights, hessian, scale), rel=1e-5, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(inputs=st.integers(1, 80), outputs=st.integers(1, 6), rows=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_no_output_is_worse_than_rounded_to_nearest(inputs, outputs, rows, seed):
    weights, hessian = problem(inputs, outputs, seed, rows)
    of = damped(hessian)
    found = error(weights, gptq(weights, hessian), of)
    assert (found <= error(weights, nearest(weights, np.diag(of)), of) * (1 + 1e-9) + 1e-12).all()


def test_it_is_much_better_where_inputs_depend_on_each_other():
    weights, hessian = problem(96, 40)
    of = damped(hessian)
    assert (
        error(weights, gptq(weights, hessian), of).sum() < 0.5 * error(weights, nearest(weights, np.diag(of)), of).sum()
    )


def test_the_scale_of_the_hessian_does_not_matter():
    weights, hessian = problem(40, 5)
    assert np.array_equal(gptq(weights, hessian).values(), gptq(weights, 1024 * hessian).values())


@settings(max_examples=40, deadline=None)
@given(inputs=st.integers(1, 80), outputs=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_rounded_to_nearest_is_near(inputs, outputs, seed):
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs))
    found = nearest(weights, np.ones(inputs))
    largest = np.abs(weights).max(axis=0)
    assert (np.abs(found.values() - weights) <= 0.5 * largest).all()
    assert ((found.values() - weights) ** 2).sum() <= 0.02 * (weights**2).sum() + 1e-12


def test_weights_that_are_zero_stay_zero():
    weights, hessian = problem(45, 6)
    weights[:, 2] = 0
    weights[:32, 3] = 0  # a block
    for found in (gptq(weights, hessian), nearest(weights, np.diag(hessian))):
        assert not found.values()[:, 2].any()
        assert np.isfinite(found.values()).all()
        assert (found.scale >= 0).all()
    assert not gptq(np.zeros((45, 6)), hessian).values().any()
    assert not nearest(weights, np.ones(45)).values()[:32, 3].any()


def test_inputs_that_calibration_never_used_are_rounded_to_nearest():
    weights, hessian = problem(45, 6)
    unused = [3, 40]
    hessian[unused] = hessian[:, unused] = 0
    found = gptq(weights, hessian).values()
    assert found[unused] == pytest.approx(weights[unused], abs=0.5 * np.abs(weights).max())
    everything = np.ones(45)
    assert np.array_equal(gptq(weights, np.zeros((45, 45))).values(), nearest(weights, everything).values())


def test_activations_that_are_not_finite_are_an_error():
    weights, hessian = problem(4, 2)
    hessian[1, 1] = np.inf
    with pytest.raises(BuildError, match="not finite"):
        gptq(weights, hessian)
