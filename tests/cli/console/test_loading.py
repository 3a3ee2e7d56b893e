from __future__ import annotations

import io

import pytest
from rich.console import Console

from edvit.cli.console.loading import loading


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_alone_shows_that_something_is_loaded(terminal):
    written = io.StringIO()
    with loading(Console(file=written, force_terminal=terminal, width=80)):
        pass
    assert ("loading PyTorch" in written.getvalue()) == terminal
    assert terminal or written.getvalue() == ""
