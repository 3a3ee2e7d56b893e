"""`python -m benchmarks.compare` on the digits: every system is built and carried out for real."""

import csv
import signal
import subprocess
import sys

import pytest
from benchmarks.compare.__main__ import app
from benchmarks.compare.systems import SYSTEMS

from serving import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_systems_are_compared_and_a_killed_run_is_taken_up(tmp_path):
    out = tmp_path / "compared"
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--workers", "1", "-o", str(out)]
    command += ["--image-encoding", "webp"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as begun:
        for line in begun.stdout:
            if line.startswith("[channels,"):
                break
        begun.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in (out / "measured").glob("*.json")}
    assert finished

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    rows = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    assert [row["system"] for row in rows] == list(SYSTEMS)
    by_system = {row["system"]: row for row in rows}
    assert all(float(row["accuracy"]) > 0.5 and float(row["latency_s"]) > 0 for row in rows)
    # What computes the base model's very function has its accuracy, but for an image of 360 that two classes share.
    base = float(by_system["whole-torch"]["accuracy"])
    assert all(
        float(by_system[name]["accuracy"]) == pytest.approx(base, abs=0.005) for name in ("whole", "pipeline", "tokens")
    )
    assert int(by_system["split-cnn"]["params"]) <= int(by_system["whole"]["params"]) / 8
    assert float(by_system["tokens"]["wire_bytes"]) > float(by_system["subspace"]["wire_bytes"])
    assert (out / "accuracy.svg").read_text().startswith("<?xml")
    assert (out / "compare.md").read_text().strip() in done.stdout


def test_bad_input_is_one_line(benchmark, tmp_path):
    for options, message in (
        (["--systems", "subspace,magic"], "unknown system 'magic'"),
        (["--link", "fast"], "'fast' is no link: write RATE,DELAY,LOSS"),
        (["--systems", "subspace", "--budget", "0.001"], "nothing to compare: a budget of 0.001 MB a device is too"),
        (["--systems", "split-cnn", "--convnet", "vgg99"], "unknown model 'vgg99'"),
        (["--systems", "compact", "--compact", "mobilenetv3_small_100"], "mobilenetv3_small_100 cannot be"),
    ):
        code, _, said = benchmark(app, "-o", tmp_path / "compared", *options)
        assert code == 2, said
        assert len(said.splitlines()) == 1
        assert message in said
