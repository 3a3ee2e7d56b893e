"""What belongs together, such as the clips of one speaker: `--split-by` keeps it on one side of every cut."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from edvit.errors import ConfigError, DataError
from edvit.units import counted

GroupOf = Callable[[str], str | None]
"""From a file's name, relative to its data set's folder, to its group; None where the name tells none."""


def groups_of(names: Sequence[str], split_by: str) -> tuple[str, ...]:
    """The group of each file.

    Args:
        names: relative to the data set's folder, with `/`, composed (NFC).
        split_by: a regular expression with one group, which is searched in each name, or the path of a CSV file of
            `name,group` lines; there a name without `/` is the file of that name in any folder.

    Raises:
        ConfigError: it is no such expression, or no such file.
        DataError: files have no group, or an empty one; the message names some.
    """
    group_of = _from_table(Path(split_by)) if split_by.lower().endswith(".csv") else _from_pattern(split_by)
    found = [group_of(name) for name in names]
    # Files whose group is empty have nothing in common.
    lacking = [name for name, group in zip(names, found, strict=True) if not group]
    if lacking:
        raise DataError(
            f"--split-by {split_by}: tells no group of {counted(len(lacking), 'file')} of {len(names):,}, such as "
            f"{lacking[0]}"
        )
    return tuple(group for group in found if group)


def _from_pattern(text: str) -> GroupOf:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"--split-by {text}: is no regular expression ({error}), and no .csv file") from None
    if pattern.groups != 1:
        raise ConfigError(
            f"--split-by {text}: has {counted(pattern.groups, 'group')}; put one pair of parentheses around what "
            "files that belong together share, such as '([^/]+)_nohash'"
        )

    def group_of(name: str) -> str | None:
        match = pattern.search(name)
        return None if match is None else match[1]

    return group_of


def _from_table(path: Path) -> GroupOf:
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise ConfigError(f"--split-by {path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--split-by {path}: cannot be read as CSV ({type(error).__name__})") from None
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong is not None:
        raise ConfigError(
            f"--split-by {path}: row {wrong} has {len(rows[wrong - 1])} columns; two are needed: name,group"
        )
    table: dict[str, str] = {}
    for name, group in rows:
        key = unicodedata.normalize("NFC", name.strip())
        if table.setdefault(key, group.strip()) != group.strip():
            raise ConfigError(f"--split-by {path}: gives {name!r} two groups")
    return lambda name: table.get(name, table.get(name.rpartition("/")[2]))
