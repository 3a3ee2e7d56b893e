"""A build on a cluster of two nodes, one of which is lost while it trains."""

import threading

import pytest
import torch

from edvit.builder.config import make_config
from edvit.builder.pipeline import build
from edvit.fleet import local_fleet
from ray_nodes import ray_nodes
from waiting import eventually


def small_config(**settings):
    """A model that every node knows without the tests' help."""
    return make_config(
        fleet=local_fleet(2), base_epochs=1, recover_epochs=10, views=2, calibration=8, baseline=False, **settings
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # two builds, one of which loses a node
def test_a_node_lost_in_mid_build_changes_nothing(tmp_path):
    torch.set_num_threads(1)
    work = tmp_path / "work"
    with ray_nodes() as (address, (_, worker)):
        lost = threading.Event()

        def lose_a_node():
            # Two attempts have begun: one on each node, which has one core.
            eventually(lambda: len(list(work.glob(".scratch-recover-*/*"))) == 2, timeout_s=200)
            worker.kill()
            lost.set()

        thread = threading.Thread(target=lose_a_node, daemon=True)
        thread.start()
        bundle, _ = build(small_config(ray=address), tmp_path / "out", work=work)
        thread.join(60)
    assert lost.is_set()
    here, _ = build(small_config(), tmp_path / "here")
    assert bundle.digest == here.digest, "as on one machine, to the last bit"
    assert list(work.glob(".scratch-*")) == []
