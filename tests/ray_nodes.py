"""A Ray cluster of processes of this machine, started as a user starts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from free_port import free_port
from waiting import eventually

RAY_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
LEAST = ["--num-cpus=1", "--object-store-memory=100000000"]


class Node:
    """`ray start`, one core, until `kill`."""

    def __init__(self, arguments, log):
        # The functions that tests run lie beside this file.
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RAY_USAGE_STATS_ENABLED": "0"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*RAY_START, *LEAST, *arguments], stdout=file, stderr=file, env=environment, start_new_session=True
            )

    def up(self):
        """Whether it has joined the cluster."""
        assert self.process.poll() is None, self.log.read_text()
        return "Ray runtime started" in self.log.read_text()

    def kill(self):
        """As a power cut does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            every = [top, *top.children(recursive=True)]
            for process in every:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(every, timeout=10)
        self.process.wait(10)


@contextlib.contextmanager
def ray_nodes(workers=1):
    """`(address, [head, worker, ...])` of a cluster of one-core nodes; every one is killed when the block ends."""
    port = free_port()
    # pytest's own folders are too deep: the path of a socket is at most 107 characters long.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    nodes = []
    try:
        nodes.append(Node(head, folder / "head.log"))
        eventually(nodes[0].up, timeout_s=60)
        for i in range(workers):
            nodes.append(Node([f"--address=127.0.0.1:{port}"], folder / f"worker-{i}.log"))
        for node in nodes:
            eventually(node.up, timeout_s=60)
        yield f"127.0.0.1:{port}", nodes
    finally:
        for node in reversed(nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)
