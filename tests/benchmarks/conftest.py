import sys

import pytest

from edvit.cli import run_app


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Runs a benchmark's command in this process; returns (exit code, stdout, stderr)."""

    def run(app, *arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_app(app)
        return caught.value.code, *capsys.readouterr()

    return run
