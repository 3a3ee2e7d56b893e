"""What a person sees of a build: rate and time left while a stage runs, one line when it is done.

A terminal shows a bar; elsewhere, as in a log file, there is a line a minute.
"""

from __future__ import annotations

import time
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


LINE_EVERY_S = 60.0
"""Seconds between two lines of a stage that runs, where there is no terminal."""


class Reporter:
    """Writes to a console; `Reporter(quiet=True)` writes nothing.

    Args:
        console: where to; standard output by default.
        quiet: write nothing.
        clock: seconds that pass.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(quiet=quiet, highlight=False)
        self._clock = clock

    def line(self, stage: str, text: str, seconds: float | None = None, *, kept: bool = False) -> None:
        """One finished stage; `kept` if an earlier build has finished it."""
        # In front of the text, which may end in the name of a file.
        before = "[dim]kept:[/dim] " if kept else ""
        took = "" if kept or seconds is None else f"  [dim]{seconds:,.0f} s[/dim]"
        self.console.print(f"[green]✓[/green] {stage:<10} {before}{escape(text)}{took}", soft_wrap=True)

    def note(self, stage: str, text: str) -> None:
        """Something about a stage that is not finished."""
        self.console.print(f"  {stage:<10} {escape(text)}", soft_wrap=True)

    @contextmanager
    def bar(self, stage: str, text: str) -> Iterator[Callable[[int, int], None]]:
        """How a stage goes on; the callback takes what is done and what there is in all."""
        if not self.console.is_terminal:
            yield _Lines(self, stage, text, self._clock).take
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


class _Lines:
    """A line a minute, while the callback is called."""

    def __init__(self, report: Reporter, stage: str, text: str, clock: Callable[[], float]) -> None:
        self._report, self._stage, self._text, self._clock = report, stage, text, clock
        self._began = self._said = clock()
        self._first: int | None = None

    def take(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first is None:  # what a checkpoint held took no time of this build
            self._first, self._began = done, now
        if now - self._said < LINE_EVERY_S:
            return
        self._said = now
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        pace = f" · {_rate(rate)} · {_duration((total - done) / rate)} left" if rate > 0 else ""
        self._report.note(self._stage, f"{self._text} · {done:,} of {total:,}{pace}")


def _rate(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
