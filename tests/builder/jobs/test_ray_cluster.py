from __future__ import annotations

import socket
import subprocess
import sys

import pytest

import parallel_jobs
from edvit.builder.jobs import ray_cluster
from edvit.builder.jobs.parallel import Processes
from edvit.builder.jobs.ray_cluster import RETRIES, RayCluster, connected
from edvit.errors import BuildError, ConfigError
from free_port import free_port
from ray_nodes import ray_nodes


@pytest.mark.parametrize("address", ["", "here", "10.0.0.1", ":6379", "host:", "host:port", "host:0", "host:70000"])
def test_an_address_that_is_none(address, tmp_path):
    with pytest.raises(ConfigError, match="is not auto or HOST:PORT"), connected(address, tmp_path):
        pass


def test_an_address_where_nothing_answers(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConfigError, match=rf"--ray {address}: no answer .*ray start --head"),
        connected(address, tmp_path),
    ):
        pass


def test_an_address_where_something_else_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "HEALTH_SECONDS", 5.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"--ray {address}: .* no Ray head"), connected(address, tmp_path):
            pass


def test_nothing_imports_ray_that_was_not_asked_to():
    seen = "import sys, edvit.cli, edvit.builder.pipeline, benchmarks.paper.builds; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", seen], check=False).returncode == 0


@pytest.mark.slow
def test_jobs_on_a_cluster(tmp_path, monkeypatch):
    with ray_nodes(workers=0) as (address, _), connected(address, tmp_path) as cluster:
        assert cluster.describe() == "1 at a time on 1 Ray nodes"
        seen = []
        made = cluster.run(parallel_jobs.square, [3, 1, 2], progress=lambda *state: seen.append(state))
        assert [result["square"] for result in made] == [9, 1, 4]
        assert {result["threads"] for result in made} == {1}
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert cluster.run(parallel_jobs.square, [], progress=print) == []

        draws = Processes(1).run(parallel_jobs.draw, [0, 1], progress=lambda done, total: None)
        assert cluster.run(parallel_jobs.draw, [0, 1], progress=lambda done, total: None) == draws, "to the last bit"

        with pytest.raises(BuildError, match=r"^job 2 cannot be done$"):
            cluster.run(parallel_jobs.fail_at_two, [1, 2, 3], progress=lambda done, total: None)
        with pytest.raises(BuildError, match=rf"lost on the Ray cluster {RETRIES + 1} times"):
            cluster.run(parallel_jobs.die_at_one, [1], progress=lambda done, total: None)

        with monkeypatch.context() as patch, pytest.raises(BuildError, match=r"has edvit .*, this machine 0\.0\.1"):
            patch.setattr(ray_cluster, "__version__", "0.0.1")
            cluster.run(parallel_jobs.square, [1], progress=lambda done, total: None)
        elsewhere = RayCluster(tmp_path / "elsewhere")
        with pytest.raises(BuildError, match=r"does not see the work folder .*elsewhere"):
            elsewhere.run(parallel_jobs.square, [1], progress=lambda done, total: None)
