from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from edvit.builder.describe import describe_base
from edvit.builder.models.class_names import HeadOrder
from edvit.builder.models.origin import Facts, Origin
from edvit.builder.stages.source import open_source
from tiny_build import tiny_config

NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def source():
    return replace(open_source(tiny_config()), statistics="config.json")


def said(source, facts, order=None, new_head=False):
    base = SimpleNamespace(artifact=SimpleNamespace(note={"epochs": 0, "validation": 0.9, "new_head": new_head}))
    text = describe_base(replace(source, origin=Origin("w", (), facts), order=order), base)
    start, end = "vit_test_build · as given · 90.0% on validation · ", ", mean and deviation of config.json"
    assert text.startswith(start)
    assert text.endswith(end)
    return text[len(start) : -len(end)]


@pytest.mark.parametrize(
    ("facts", "more", "text"),
    [
        (Facts(), {}, "head's classes as the data's"),
        (Facts(), {"new_head": True}, "new head"),
        (
            Facts("config.json", classes=NAMES),
            {"order": HeadOrder("config.json", 3, (0, 1, 2))},
            "head's classes by config.json",
        ),
        (
            Facts("config.json", classes=NAMES),
            {},
            "head's classes as the data's (config.json names 3 outputs, none a class of the data: zero, one, two)",
        ),
        (
            Facts(weights=("state_dict_ema", "state_dict")),
            {},
            "weights of state_dict_ema, not state_dict · head's classes as the data's",
        ),
    ],
)
def test_what_the_weights_and_the_head_were_taken_from(facts, more, text, source):
    assert said(source, facts, **more) == text
