"""What a person sees of a build: a bar with rate and time left while a stage runs, one line when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="dim")


class Reporter:
    """Writes to a console; `Reporter(quiet=True)` writes nothing."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet, highlight=False)

    def line(self, stage: str, text: str, seconds: float | None = None) -> None:
        """One finished stage."""
        took = "" if seconds is None else f"  [dim]{seconds:,.0f} s[/dim]"
        self.console.print(f"[green]✓[/green] {stage:<10} {escape(text)}{took}", soft_wrap=True)

    @contextmanager
    def bar(self, stage: str, text: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; the callback takes what is done and what there is in all. Nothing where no one looks on."""
        if not self.console.is_terminal:
            yield lambda done, total: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"{stage:<10} {text}", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
