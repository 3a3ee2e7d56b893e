"""A gateway with two devices, as processes, that shows metrics in both places."""

from __future__ import annotations

import pytest

from edvit.runtime.local import serve_locally
from edvit.runtime.watching.watching import MetricsAt
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("watching") / "bundle", submodels=2, classes=4)
    with serve_locally(bundle, metrics=MetricsAt(route=True, port=0), deadline_s=60.0) as service:
        yield service
