"""A small fleet in one process."""

from __future__ import annotations

import pytest

from edvit.runtime.predictor import LocalPredictor
from fleet_in_memory import fleet_of, memory_fleet
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Three sub-models on dev-1 and dev-2 (0 and 2 on dev-1), and a spare device."""
    fleet = fleet_of({"name": "dev-1"}, {"name": "dev-2"})
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("gateway") / "bundle", submodels=3, classes=6, fleet=fleet)
    assert [line.device for line in bundle.manifest.plan.placed] == ["dev-1", "dev-2", "dev-1"]
    return bundle


@pytest.fixture
def fleet(bundle, tmp_path):
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


@pytest.fixture
def local(bundle):
    return LocalPredictor(bundle)
