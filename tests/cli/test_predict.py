from __future__ import annotations

from pathlib import Path

from edvit.cli.predict import failure_line, text_line
from edvit.errors import ImageError
from edvit.runtime.http.answers import Predicted

ANSWER = {
    "index": 0,
    "probability": 0.9,
    "top": [],
    "degraded": False,
    "missing": [],
    "timings": {"total_ms": 1.0, "decode_ms": 0.1, "gather_ms": 0.2, "fuse_ms": 0.3, "slowest_run_ms": 0.1},
}


def test_a_label_and_a_file_name_steer_no_terminal():
    answer = Predicted.model_validate({**ANSWER, "label": "cat\x1b[2J\nforged"})
    line = text_line(Path("a\x1b[31m.png"), answer, 20)
    assert line.isprintable()
    assert "cat\\x1b[2J\\nforged" in line
    assert failure_line(Path("a\nb"), ImageError("no image"), as_json=False) == "edvit: a\\nb: no image"
