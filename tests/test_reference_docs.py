"""docs/fleet.md, docs/stages.md and docs/api.md against the code."""

import importlib
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

import edvit
from edvit.builder import stages
from edvit.builder.jobs.job import Job
from edvit.builder.options import Stage
from edvit.fleet import PROFILES, Device, Fleet, GatewaySpec, Link

DOCS = Path(__file__).parents[1] / "docs"
FLEET, STAGES_PAGE, API = ((DOCS / name).read_text(encoding="utf-8") for name in ("fleet.md", "stages.md", "api.md"))


def first_column(page):
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def test_every_field_of_a_fleet_is_described():
    fields = [
        *(name for name in Fleet.model_fields if name != "gateway"),
        *(f"gateway.{name}" for name in GatewaySpec.model_fields),
        *(f"devices[].{name}" for name in Device.model_fields if name != "link"),
        *(f"devices[].link.{name}" for name in Link.model_fields),
    ]
    assert sorted(first_column(FLEET.partition("## Profiles")[0])) == sorted(fields)
    for model, prefix in ((GatewaySpec, "gateway"), (Link, "devices[].link")):
        for name, field in model.model_fields.items():
            assert f"| {field.default:g} |" in next(line for line in FLEET.splitlines() if f"`{prefix}.{name}`" in line)


def test_every_profile_has_its_figures():
    for name, profile in PROFILES.items():
        assert f"| `{name}` | {profile.gflops:g} | {profile.watts:g} | {profile.memory_mb:g} |" in FLEET
    assert first_column(FLEET.partition("## Profiles")[2]) == list(PROFILES)


def test_the_fleet_of_the_page_is_one():
    assert Fleet.model_validate(yaml.safe_load(re.search(r"```yaml\n(.*?)```", FLEET, re.DOTALL)[1])).name == "shelf"


def test_the_stages_are_those_of_the_jobs():
    assert first_column(STAGES_PAGE) == list(get_args(Stage))
    found = set()
    for path in Path(stages.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"edvit.builder.stages.{path.stem}")
        found |= {
            kind.STAGE
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Job) and not inspect.isabstract(kind)
        }
    assert found == set(get_args(Stage))


@pytest.mark.parametrize("name", edvit.__all__)
def test_every_public_name_is_described(name):
    assert f"`edvit.{name}`" in API
    assert getattr(edvit, name) is not None
