"""`benchmarks/device_process.py` measures a real device process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device_process.py"


@pytest.mark.slow
def test_it_measures_a_start():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--starts", "1", "--json"], capture_output=True, text=True, check=True, timeout=250
    )
    figures = json.loads(done.stdout)["figures"]
    assert 0 < figures["found_s"]["median"] <= figures["ready_s"]["median"]
    assert 50 < figures["resident_mb"]["median"] < 1000
