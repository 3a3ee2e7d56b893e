from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.builder.jobs import job as job_module
from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.job import Job, digest_of, unkeyed
from edvit.inputs.audio import Spectrogram


@dataclass(frozen=True)
class Inner:
    """A part of a job, with a field that does not change its result."""

    rate: float
    at_once: int = unkeyed()


@dataclass(frozen=True)
class Any(Job):
    """A job of any input."""

    STAGE: ClassVar[str] = "base"
    LIBRARIES: ClassVar[tuple[str, ...]] = ("torch",)

    value: object
    device: str = field(default="cpu", metadata={"unkeyed": True})

    def run(self, folder, progress):
        return {}


@dataclass(frozen=True)
class Other(Any):
    """The same fields, of another stage."""

    STAGE: ClassVar[str] = "teacher"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@given(values, values)
def test_keys_are_equal_where_the_inputs_are(one, other):
    assert Any(one).key == Any(one, device="cuda:0").key, "what trains does not change the result"
    assert Any(one).key != Other(one).key
    if Any(one).inputs() != Any(other).inputs():
        assert Any(one).key != Any(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(3), np.arange(4)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (Inner(0.1, 2), Inner(0.2, 2)),
        (Spectrogram(), Spectrogram(mels=32)),
        (Artifact(Path("a"), "1"), Artifact(Path("a"), "2")),
        ((1, 2), (2, 1)),
        ({"a": 1}, {"b": 1}),
        ("1", 1),
    ],
)
def test_other_contents_are_other_keys(one, other):
    assert Any(one).key == Any(one).key
    assert Any(one).key != Any(other).key


def test_a_field_that_changes_nothing_is_left_out_at_any_depth():
    assert Any(Inner(0.1, 2)).key == Any(Inner(0.1, 64)).key
    assert Any([Artifact(Path("here"), "1")]).key == Any([Artifact(Path("there"), "1")]).key, "content, not place"


def test_what_has_no_content_to_compare_is_refused():
    for value in (Path("weights"), object(), {1, 2}):
        with pytest.raises(TypeError, match="a job's key cannot be made from"):
            _ = Any(value).key


def test_another_version_of_a_library_that_changes_the_result_is_another_key(monkeypatch):
    before = Any(1).key
    monkeypatch.setattr(job_module, "version_of", lambda name: "99.0")
    assert Any(1).key != before


def test_the_digest_of_an_array_does_not_depend_on_its_layout():
    array = np.arange(6).reshape(2, 3)
    assert digest_of(array) == digest_of(np.asfortranarray(array))
