"""README.md and docs/guide against the code: commands, options, make targets, Python, fields of an answer."""

import ast
import re
import shlex
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from benchmarks.compare.__main__ import app as compare_app
from benchmarks.paper.__main__ import app as paper_app

import edvit
from edvit.cli.commands import app
from edvit.fleet import Fleet
from edvit.runtime.http.answers import AnswerTimings, Predicted

BENCHMARKS = {"bench paper": paper_app, "bench compare": compare_app}
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "results/comparison.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
SERVING = (ROOT / "docs" / "guide" / "serving.md").read_text()


def joined(text):
    """The text with lines that end in a backslash joined."""
    return re.sub(r"\\\n\s*", "", text)


def lines_starting(word):
    return [
        pytest.param(line, id=f"{page.name}: {line[:40]}")
        for page in PAGES
        for line in re.findall(rf"^    {word} +(.+)$", joined(page.read_text()), re.MULTILINE)
    ]


def options_of(name):
    arguments = BENCHMARKS[name] if name in BENCHMARKS else reduce(getitem, name.split(), app)
    known = {option for argument in arguments.assemble_argument_collection() for option in argument.names}
    # The table of the paper hands on to `edvit build` what it does not know.
    return known | options_of("build") if name == "bench paper" else known


@pytest.mark.parametrize("line", lines_starting("edvit"))
def test_every_command_exists_with_its_options(line):
    name, *words = shlex.split(line, comments=True)
    if name in ("bench", "keys"):
        name = f"{name} {words.pop(0)}"
    assert {word for word in words if word.startswith("-")} <= options_of(name)


@pytest.mark.parametrize("line", lines_starting("make"))
def test_every_make_target_exists(line):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{shlex.split(line, comments=True)[0]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_text_exists(page):
    names = ("plan", "serve", "deploy", "device", "doctor", "predict", "evaluate", "inspect", "build", "bench compare")
    names += tuple(f"keys {name}" for name in app["keys"] if not name.startswith("-"))
    known = set().union(*map(options_of, names))
    assert set(re.findall(r"`(--[a-z-]+)", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_text_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fleets_in_the_text_are_fleets(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        Fleet.model_validate(yaml.safe_load(block))


def test_what_the_readme_says_of_the_package_is_there():
    names = set(re.findall(r"`edvit\.(\w+)\(", (ROOT / "README.md").read_text()))
    assert names
    assert names <= set(edvit.__all__)


def test_every_field_of_an_answer_is_explained():
    for field in {*Predicted.model_fields, *AnswerTimings.model_fields}:
        assert f"`{field}`" in SERVING


def test_the_serving_guide_has_its_commands():
    found = {line.split()[0] for line in re.findall(r"^    edvit (.+)$", SERVING, re.MULTILINE)}
    assert found == {"inspect", "keys", "serve", "deploy", "device", "predict", "evaluate"}
