"""The demo on the tiny build: its devices, its gateway and its table are real, its training is short."""

import io
import re
import shutil

import psutil
import pytest
from rich.console import Console

from edvit.builder.jobs.progress import Reporter
from edvit.bundle import read_bundle
from edvit.cli.demo import run_demo
from edvit.errors import PortInUseError
from tiny_build import tiny_config


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.slow
def test_the_demo_builds_serves_evaluates_and_leaves_no_process(tiny_build, tmp_path):
    out = tmp_path / "demo"
    shutil.copytree(tiny_build.work, tmp_path / "demo-work")
    before, said = children(), io.StringIO()
    run_demo(tiny_config(), out, port=0, report=Reporter(Console(file=said, width=200)))
    assert children() <= before

    manifest = read_bundle(out).manifest
    lines = said.getvalue().splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("✓")]
    assert stages == [
        "data",
        "base",
        "partition",
        "prune",
        "recover",
        "fuse",
        "test",
        "verdict",
        "bundle",
        "serve",
        "evaluate",
    ]
    serve = next(line for line in lines if line.startswith("✓ serve"))
    assert re.search(r"gateway http://127\.0\.0\.1:\d+, devices dev-1 … dev-2", serve)
    assert any(line.startswith("✓ evaluate") and "360 images over HTTP" in line for line in lines)

    def row(name):
        (found,) = [line for line in lines if line.startswith(name)]
        return found.removeprefix(name).split("  ")

    def cells(name):
        return [cell.strip() for cell in row(name) if cell.strip()]

    for name, metric in (("base, one device", "base"), ("fused, 2 devices", "fused"), ("N = 1, same width", "n1")):
        accuracy, latency, size = cells(name)
        assert accuracy == f"{manifest.metric(metric):.1%}", "over HTTP as in the build"
        assert re.fullmatch(r"\d+\.\d ms", latency)
        assert re.fullmatch(r"\d+\.\d\d MB", size)
    lost = sorted(manifest.metric(f"fused-without-dev-{i}") for i in (1, 2))
    assert cells("one device lost") == [f"{lost[0]:.1%} – {lost[1]:.1%}"]
    text = said.getvalue()
    assert "every answer equals what the same files give in one process" in text
    assert f"Bundle and report: {out} (open report.html)" in text
    assert lines[-1] == f"Next: edvit serve {out} --local"
    assert (out / "report.html").is_file()


@pytest.mark.slow
def test_a_port_in_use_keeps_the_bundle(tiny_build, tmp_path):
    import socket

    out = tmp_path / "demo"
    shutil.copytree(tiny_build.work, tmp_path / "demo-work")
    before = children()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortInUseError):
            run_demo(tiny_config(), out, port=taken.getsockname()[1], report=Reporter(quiet=True))
    assert children() <= before
    assert read_bundle(out).manifest.metric("fused") == tiny_build.bundle.manifest.metric("fused")
