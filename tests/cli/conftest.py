import sys

import pytest

from edvit.cli import main


@pytest.fixture
def edvit(monkeypatch, capsys):
    """Runs a command in this process, as the `edvit` script does; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edvit", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run
