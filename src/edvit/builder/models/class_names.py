"""Which output of a checkpoint's head stands for which of the data's classes, by the names of both."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edvit.errors import WeightsError
from edvit.inputs.datasets.images import shorten

SYNSET = re.compile(r"(n\d{8})\b *(.*)", re.DOTALL)
"""A synset of WordNet and what may stand behind it, as in `n01440764 tench, Tinca tinca`."""


@dataclass(frozen=True)
class HeadOrder:
    """Which output of a checkpoint's head stands for each of the data's classes.

    Attributes:
        source: what says so.
        outputs: of the head, how many it names.
        rows: an output for each class.
    """

    source: str
    outputs: int
    rows: tuple[int, ...]


def head_order(names: Sequence[str], classes: Sequence[str], source: str) -> HeadOrder | None:
    """The outputs of a head that stand for the data's classes, by their names.

    Names are compared without regard to case, and `_`, `-` and spaces are one. `n01440764 tench, Tinca tinca` is found
    as `n01440764`, `tench` and `tinca tinca` as well: these are ImageNet's names, and folders have any part of them.

    Args:
        names: of the head's outputs, in their order.
        source: what gives these names.

    Returns:
        None where no class is among the names: they are of something else.

    Raises:
        WeightsError: some of the classes are among the names and some are not, or one is there twice.
    """
    by_form: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        for level, forms in enumerate(_forms(name)):
            for form in forms:
                by_form[level, form].append(index)
    found = {name: rows for name in classes if (rows := _outputs(name, by_form))}
    missing = [name for name in classes if name not in found]
    if found and missing:
        raise WeightsError(
            f"{source} names {len(names)} outputs, and not {shorten(missing)} of the data's {len(classes)} classes; "
            "give --class-names FILE with the data's names, in the outputs' order"
        )
    several = [name for name, rows in found.items() if len(rows) > 1]
    rows = [rows[0] for rows in found.values()]
    if several or len(set(rows)) < len(rows):
        same = several or [name for name in classes if rows.count(found[name][0]) > 1]
        raise WeightsError(
            f"{source}: which output is which of the classes is not clear for {shorten(same)}; give --class-names FILE "
            "with the class of each output, none of them twice"
        )
    return HeadOrder(source, len(names), tuple(rows)) if rows else None


def _outputs(name: str, by_form: Mapping[tuple[int, str], list[int]]) -> list[int]:
    """The outputs that a class's name fits best: by its own best form, and by theirs."""
    for forms in _forms(name):
        for level in range(len(_forms(""))):
            rows = sorted({index for form in forms for index in by_form.get((level, form), ())})
            if rows:
                return rows
    return []


def _forms(name: str) -> tuple[set[str], ...]:
    """What a name may be written as, from the most exact on: itself, in plain letters, synset, words, each synonym."""
    plain = _plain(name)
    synset = SYNSET.fullmatch(plain)
    words = synset[2] if synset else plain
    synonyms = {part.strip() for part in words.split(",")}
    levels = ({name}, {plain}, {synset[1]} if synset else set(), {words}, synonyms)
    return tuple(level - {""} for level in levels)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())
