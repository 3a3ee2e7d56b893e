"""Independent training jobs on a Ray cluster, a core each. Only this module imports Ray, and only where asked for.

Every node has to see the work folder at the same path, for what jobs read and make lies there, and edvit of the same
version.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit import __version__
from edvit.builder.jobs.parallel import Job, Progress, Result, torch_threads
from edvit.errors import BuildError, ConfigError, EdvitError, MissingExtraError

RETRIES = 3
"""How often a job is run again when its node or process was lost."""
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0
"""How long the head node may take to answer; starting Python takes most of it."""


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process is connected to; a `parallel.Pool`.

    Attributes:
        shared: a folder that all nodes have to see, its path absolute and as the jobs have it.
    """

    shared: Path

    def run(self, work: Callable[[Job, Progress], Result], jobs: Sequence[Job], *, progress: Progress) -> list[Result]:
        """Results of `work(job, progress)` for every job, in the order of `jobs`.

        A job is run again, from its beginning, where its node is lost. `progress` counts finished jobs.

        Raises:
            BuildError: a node cannot run jobs, or a job's node was lost again and again. What `work` raises is raised
                here.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(_run)
        places = {task.remote(work, job, self.shared, __version__): i for i, job in enumerate(jobs)}
        results, waiting = {}, list(places)
        try:
            while waiting:
                ready, waiting = ray.wait(waiting)
                for reference in ready:
                    results[places[reference]] = ray.get(reference)
                progress(len(results), len(jobs))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, (EdvitError, OSError)) else error from None
        except RayError as error:
            kind = type(error).__name__
            raise BuildError(f"a job was lost on the Ray cluster {RETRIES + 1} times ({kind})") from None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
        return [results[i] for i in range(len(jobs))]

    def describe(self) -> str:
        """How many jobs it runs at a time."""
        import ray

        nodes = sum(node["Alive"] for node in ray.nodes())
        return f"{int(ray.cluster_resources().get('CPU', 0))} at a time on {nodes} Ray nodes"


@contextmanager
def connected(address: str, shared: Path) -> Iterator[RayCluster]:
    """A cluster that runs already.

    Args:
        address: `HOST:PORT` of the head node, or `auto` for the cluster that this machine is a node of. This machine
            has to be a node of it.
        shared: see `RayCluster`.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster answers there.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtraError("--ray needs ray: pip install 'edvit[ray]'") from None
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray {address}: {str(error).splitlines()[0]}") from None
    try:
        yield RayCluster(shared)
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries for a quarter of an hour, and says so on every line."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--ray {address}: is not auto or HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        kind = type(error).__name__
        raise ConfigError(f"--ray {address}: no answer ({kind}); is the head node up (ray start --head)?") from None
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(check, capture_output=True, timeout=HEALTH_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise ConfigError(
            f"--ray {address}: what answers there is no Ray head node; its port is 6379 unless it was given another"
        ) from None


def _run(work: Callable[[Any, Progress], Any], job: Any, shared: Path, version: str) -> Any:
    """On a node."""
    node = os.uname().nodename
    if version != __version__:
        raise BuildError(f"Ray node {node} has edvit {__version__}, this machine {version}; install the same")
    if not shared.is_dir():
        raise BuildError(f"Ray node {node} does not see the work folder {shared}; put --work on a shared disk")
    with torch_threads(1):
        return work(job, lambda done, total: None)
