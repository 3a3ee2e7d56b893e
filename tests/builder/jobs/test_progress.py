from __future__ import annotations

import io

import pytest
from rich.console import Console

from edvit.builder.jobs.progress import Reporter


def recorded(**options):
    file = io.StringIO()
    return Reporter(Console(file=file, width=60, **options)), file


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
