"""Which images are taken for none of the classes, over HTTP as in one process."""

from __future__ import annotations

import numpy as np
import pytest

from edvit.bundle import Metric
from edvit.errors import ConfigError
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.rejection import NEVER, Rejection
from fleet_in_memory import memory_fleet, some_images
from served_in_memory import served_in_memory
from tiny_bundle import write_tiny_bundle
from waiting import eventually


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "bundle")


def test_a_rate_is_looked_up_in_the_bundle(bundle):
    metrics = tuple(
        Metric(name=f"unknown-below-{share}", value=value, unit="probability", split="validation")
        for share, value in ((0.01, 0.31), (0.05, 0.62))
    )
    calibrated = bundle.manifest.model_copy(update={"metrics": metrics})
    assert Rejection(rate=0.05).probability(calibrated) == 0.62
    assert Rejection(below=0.4).probability(calibrated) == 0.4
    assert NEVER.probability(bundle.manifest) == 0.0
    with pytest.raises(ConfigError, match="build it again"):
        Rejection(rate=0.05).probability(bundle.manifest)
    with pytest.raises(ConfigError, match=r"a share of 0\.03, only for 0\.01, 0\.05"):
        Rejection(rate=0.03).probability(calibrated)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"below": 0.5, "rate": 0.05}, "give one of them"),
        ({"below": 0.0}, "--unknown-below must be between 0 and 1, not 0"),
        ({"below": float("nan")}, "--unknown-below must be between 0 and 1, not nan"),
        ({"rate": 5.0}, "--unknown-rate must be between 0 and 1, not 5"),
    ],
)
def test_what_means_nothing_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Rejection(**given)


def test_a_gateway_answers_unknown_as_one_process_does(bundle, tmp_path):
    images = some_images(bundle, 40)
    best = LocalPredictor(bundle).run(images).probabilities.max(axis=1)
    middle = float(np.median(best))
    with (
        memory_fleet(bundle, tmp_path / "cache") as fleet,
        served_in_memory(fleet, bundle, unknown_below=middle) as served,
        Client(served.url) as client,
    ):
        for name in ("dev-1", "dev-2"):
            fleet.device(name)
        eventually(lambda: client.health().status == "ready")
        answers = [client.predict_array(image) for image in images]
    local = LocalPredictor(bundle, unknown_below=middle).run(images)
    assert [answer.unknown for answer in answers] == local.unknown.tolist()
    assert [answer.label for answer in answers] == list(local.labels)
    assert 0 < local.unknown.sum() < len(images)
    assert {answer.index for answer in answers if answer.unknown} == {-1}
