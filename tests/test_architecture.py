"""ARCHITECTURE.md against the tree: every file and folder that it names is there, and every room is named."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+(?:\.py|\.html\.j2|/))`", PAGE)))
ROOMS = sorted(path.parent for path in (ROOT / "src" / "edvit").rglob("__init__.py"))


def homes(name):
    """Where a name may be: from the root, from the package, or in the rooms of its line of the table."""
    lines = [line for line in PAGE.splitlines() if f"`{name}`" in line]
    rooms = [room for line in lines for room in re.findall(r"`([\w/]+/)`", line)]
    return [ROOT, ROOT / "src" / "edvit", *(ROOT / "src" / "edvit" / room for room in rooms)]


@pytest.mark.parametrize("name", NAMED)
def test_every_place_it_names_is_there(name):
    assert any((home / name).exists() for home in homes(name)), f"{name} is not in the tree"


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_every_room_is_named_and_none_is_crowded(room):
    inside = f"{room.relative_to(ROOT / 'src' / 'edvit')}/"
    assert inside == "./" or f"`{inside}" in PAGE or f"{Path(inside).name}/`" in PAGE, f"{inside} is not named"
    files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 15, f"{room}: {len(files)} files"


CONTRACTS = {"errors", "units", "fleet", "bundle", "validation", "digest", ""}
MAY_IMPORT = {
    "shape": {"errors"},
    "inputs": {"errors", "units", "shape"},
    "plan": {*CONTRACTS, "shape"},
    "runtime": {*CONTRACTS, "shape", "inputs", "plan"},
    "builder": {*CONTRACTS, "shape", "inputs", "plan", "runtime"},
    "cli": {*CONTRACTS, "shape", "inputs", "plan", "runtime", "builder"},
}
"""Package -> what it may import beside itself; "" is `edvit` itself."""


def imported(path):
    """The packages and top-level modules of edvit that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "edvit":
            yield node.module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_between_packages_point_down(package):
    for path in (ROOT / "src" / "edvit" / package).rglob("*.py"):
        beyond = set(imported(path)) - MAY_IMPORT[package] - {package}
        assert not beyond, f"{path.relative_to(ROOT)} imports {beyond}"
