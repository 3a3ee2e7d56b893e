"""The public Python API: what it shows, and what `edvit.build` makes of its settings before anything is built."""

from __future__ import annotations

from fractions import Fraction

import pytest

import edvit
from edvit.builder import pipeline


class StoppedError(Exception):
    """The build would begin now."""


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """The configuration that a call of `edvit.build` would build."""
    seen = []

    def stop(config, *_, **__):
        seen.append(config)
        raise StoppedError

    monkeypatch.setattr(pipeline, "build", stop)

    def of(**settings):
        with pytest.raises(StoppedError):
            edvit.build(fleet=edvit.local_fleet(2), out=tmp_path / "bundle", **settings)
        return seen[-1]

    return of


def test_dir_shows_the_api_and_nothing_else():
    assert dir(edvit) == sorted(edvit.__all__)
    assert {"build", "LocalPredictor", "Answer", "__version__"} <= set(dir(edvit))
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = edvit.Predictor


@pytest.mark.parametrize(
    ("keep", "expected"), [(0.25, "0.25"), (Fraction(1, 3), "1/3"), ("2/12", "2/12"), (1, "1"), (None, None)]
)
def test_keep_is_text_or_a_number(config_of, keep, expected):
    assert config_of(keep=keep).keep == expected


def test_one_step_to_leave_out_needs_no_tuple(config_of):
    assert config_of(without="rotation").without == config_of(without=("rotation",)).without == ("rotation",)
    assert config_of(without=["rotation", "fisher"]).without == ("rotation", "fisher")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"without": "spin"}, "without"),
        ({"keep": [1]}, "keep"),
        ({"keeps": 0.25}, "keeps: unknown key"),
        ({"workers": "all"}, "workers"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line(tmp_path, settings, said):
    with pytest.raises(edvit.EdvitError, match=said) as refused:
        edvit.build(fleet=edvit.local_fleet(2), out=tmp_path / "bundle", **settings)
    assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(edvit.EdvitError, match="cannot be written") as refused:
        edvit.build(fleet=edvit.local_fleet(2), out=tmp_path / "file" / "bundle")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [0, -1])
def test_a_fleet_without_devices_is_one_line(size):
    with pytest.raises(edvit.EdvitError, match="give at least 1") as refused:
        edvit.local_fleet(size)
    assert "\n" not in str(refused.value)
