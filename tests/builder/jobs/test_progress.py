from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from edvit.builder.jobs.progress import Reporter


def recorded(clock=time.monotonic, **options):
    file = io.StringIO()
    return Reporter(Console(file=file, width=60, **options), clock=clock), file


def test_a_finished_stage_is_one_line_however_long():
    reporter, file = recorded()
    reporter.line("base", "x" * 100, seconds=12.4)
    assert file.getvalue() == f"✓ base       {'x' * 100}  12 s\n"


def test_a_class_name_in_brackets_is_not_markup():
    reporter, file = recorded()
    reporter.line("data", "imagefolder:[red]parts [/x]")
    assert "imagefolder:[red]parts [/x]" in file.getvalue()


def test_a_bar_shows_on_a_terminal_and_goes_with_its_block():
    reporter, file = recorded(force_terminal=True)
    with pytest.raises(KeyError), reporter.bar("recover", "5 sub-models") as bar:
        bar(1, 4)
        bar(3, 4)
        raise KeyError
    assert "recover" in file.getvalue()
    assert file.getvalue().rstrip().endswith("\x1b[2K")


def test_quiet_says_nothing(capsys):
    reporter = Reporter(quiet=True)
    reporter.line("base", "done")
    with reporter.bar("base", "training") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_an_earlier_build_finished_is_kept():
    reporter, file = recorded()
    reporter.line("base", "98.6%", seconds=0.1, kept=True)
    assert file.getvalue() == "✓ base       kept: 98.6%\n"


def test_without_a_terminal_a_line_a_minute_says_step_rate_and_time_left():
    now = [0.0]
    reporter, file = recorded(clock=lambda: now[0])
    with reporter.bar("base", "vit") as bar:
        for done in range(601):
            now[0] = done / 2.0
            bar(done, 3600)
    assert file.getvalue().splitlines() == [
        "  base       vit · 120 of 3,600 · 2/s · 29 min left",
        "  base       vit · 240 of 3,600 · 2/s · 28 min left",
        "  base       vit · 360 of 3,600 · 2/s · 27 min left",
        "  base       vit · 480 of 3,600 · 2/s · 26 min left",
        "  base       vit · 600 of 3,600 · 2/s · 25 min left",
    ]


def test_what_a_checkpoint_held_does_not_count_as_speed():
    now = [0.0]
    reporter, file = recorded(clock=lambda: now[0])
    with reporter.bar("base", "vit") as bar:
        bar(1000, 1300)
        now[0] = 100.0
        bar(1050, 1300)
    assert file.getvalue() == "  base       vit · 1,050 of 1,300 · 0.5/s · 8 min left\n"


def test_a_short_stage_says_nothing_before_it_is_done():
    reporter, file = recorded(clock=lambda: 0.0)
    with reporter.bar("base", "vit") as bar:
        bar(1, 2)
    assert file.getvalue() == ""
