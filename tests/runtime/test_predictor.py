from __future__ import annotations

import numpy as np
import pytest

from edvit.errors import BundleError, ConfigError
from edvit.runtime.predictor import LocalPredictor
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("engine") / "bundle", submodels=3, classes=7)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def test_a_whole_bundle_in_one_process(bundle, images):
    predictor = LocalPredictor(bundle)
    prediction = predictor.predict(images)
    assert prediction.logits.shape == (5, 7)
    assert prediction.missing == ()
    assert not prediction.degraded
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (prediction.labels == prediction.probabilities.argmax(axis=1)).all()
    assert prediction.timings.total_s >= prediction.timings.slowest_run_s > 0


def test_absent_submodels_degrade(bundle, images):
    predictor = LocalPredictor(bundle)
    whole = predictor.predict(images)
    degraded = predictor.predict(images, absent=[2, 0])
    assert degraded.missing == (0, 2)
    assert degraded.degraded
    assert not np.array_equal(degraded.logits, whole.logits)
    assert predictor.predict(images, absent=range(3)).missing == (0, 1, 2)


def test_threads_do_not_change_a_bit(bundle, images):
    one, two = LocalPredictor(bundle, threads=1), LocalPredictor(bundle, threads=2)
    assert np.array_equal(one.predict(images).logits, two.predict(images).logits)


def test_probabilities_of_huge_logits_are_finite(bundle, images):
    prediction = LocalPredictor(bundle).predict(images)
    prediction.logits[:] *= 1e4
    assert np.isfinite(prediction.probabilities).all()


def test_a_bundle_whose_fusion_does_not_fit_is_refused(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", submodels=2, classes=7)
    (bundle_path := tmp_path / "mixed").symlink_to(other.path)
    mixed = type(bundle)(path=bundle_path, manifest=bundle.manifest, digest=bundle.digest)
    with pytest.raises(BundleError):
        LocalPredictor(mixed)


def test_no_threads_is_refused(bundle):
    with pytest.raises(ConfigError, match="threads"):
        LocalPredictor(bundle, threads=0)
