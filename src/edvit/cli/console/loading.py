"""What a terminal shows while PyTorch and timm are imported: seconds, and on a busy machine a minute or more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def loading(console: Console | None = None) -> Iterator[None]:
    """One line while the block runs, gone when it ends; nothing is written where there is no terminal.

    Args:
        console: where to; standard error by default.
    """
    from rich.console import Console

    shown = console or Console(stderr=True)
    if not shown.is_terminal:
        yield
        return
    with shown.status("loading PyTorch"):
        yield
