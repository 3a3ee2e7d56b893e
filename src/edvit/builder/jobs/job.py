"""A job: one thing that a build makes, under a key that covers everything its result depends on.

A job is a frozen dataclass. Its key is derived from its fields, so that an input is declared once: a field that does
not change the result, such as the device that trains, is declared with `unkeyed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from edvit import __version__
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.parallel import Progress

Note = dict[str, Any]
"""What a job writes down about its result: JSON values."""

_UNKEYED = "unkeyed"


def unkeyed() -> Any:
    """A dataclass field that does not change the result and is no part of a key."""
    return dataclasses.field(metadata={_UNKEYED: True})


@dataclasses.dataclass(frozen=True)
class Job(ABC):
    """One thing to make. Subclasses are frozen dataclasses that can be pickled.

    Attributes:
        STAGE: name of the stage that the job belongs to; the console, `--force` and the work folder use it.
        LIBRARIES: distributions whose version changes the result.
    """

    STAGE: ClassVar[str]
    LIBRARIES: ClassVar[tuple[str, ...]]

    @abstractmethod
    def run(self, folder: Path, progress: Progress) -> Note:
        """Fill an empty folder with the result, and return what to note beside it."""

    def inputs(self) -> Any:
        """Everything that the result depends on, as JSON values.

        Raises:
            TypeError: a field is of a type that has no content to compare, such as a path.
        """
        return {
            "stage": self.STAGE,
            "edvit": __version__,
            "libraries": {name: version_of(name) for name in self.LIBRARIES},
            **_fields(self),
        }

    @property
    def key(self) -> str:
        """A digest of `inputs`, 16 hex digits."""
        return hashlib.sha256(json.dumps(self.inputs(), sort_keys=True).encode()).hexdigest()[:16]


class Resumable(Job):
    """A job that takes minutes and keeps checkpoints; from the last one a killed build goes on to the same result."""

    def run(self, folder: Path, progress: Progress) -> Note:
        """Without checkpoints."""
        return self.run_from(None, folder, progress)

    @abstractmethod
    def run_from(self, resume: Checkpoint | None, folder: Path, progress: Progress) -> Note:
        """As `run`, from the state that the checkpoint holds, if it holds one."""


@cache
def version_of(distribution: str) -> str:
    """The installed version of a library, without the build's own suffix (`2.9.0+cu128` is `2.9.0`)."""
    return importlib.metadata.version(distribution).partition("+")[0]


def digest_of(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and values, hex."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _fields(value: Any) -> dict[str, Any]:
    named = (field.name for field in dataclasses.fields(value) if not field.metadata.get(_UNKEYED))
    return {name: _content(getattr(value, name)) for name in named}


def _content(value: Any) -> Any:
    """A value of a job's field as JSON values that are equal exactly where the content is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return digest_of(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(digest := getattr(value, "digest", None), str):
        return digest
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return [[_content(key), _content(part)] for key, part in value.items()]
    if isinstance(value, tuple | list):
        return [_content(part) for part in value]
    raise TypeError(f"a job's key cannot be made from a {type(value).__name__}")
