"""docs/bundle.md describes every field of the manifest, and none that is not there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from edvit.bundle import VERSIONS, Manifest

PAGE = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text(encoding="utf-8")


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """`model` and every model that its fields hold, each once."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in flat(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner, seen)


def flat(annotation: object) -> Iterator[object]:
    yield annotation
    for inner in get_args(annotation):
        yield from flat(inner)


def documented() -> dict[str, set[str]]:
    """Field names in the tables, by the names in the section's heading."""
    sections: dict[str, set[str]] = {}
    for section in PAGE.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
        fields = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
        for name in re.findall(r"[A-Z]\w+", heading):
            sections[name] = fields
    return sections


def test_every_field_is_described():
    sections = documented()
    every = list(models(Manifest, set()))
    assert len(every) > 10
    for model in every:
        assert set(model.model_fields) <= sections[model.__name__], model.__name__


def test_no_field_is_invented():
    known = {field for model in models(Manifest, set()) for field in model.model_fields}
    for name, fields in documented().items():
        assert fields <= known, name


def test_the_versions_are_those_that_are_read():
    assert f"| `version` | {' or '.join(map(str, VERSIONS))}." in PAGE
