"""`python -m benchmarks.compare` from the command line, in this process: flags that contradict each other."""

from __future__ import annotations

import pytest
from benchmarks.compare.__main__ import app

from benchmarks.compare import comparison as compare_module
from edvit.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seeds", "3"), "--seeds"),
        (("--images", "30"), "--images"),
        (("--devices", "5", "--conv-size", "32"), "--conv-size, --devices"),
        (("--recover-epochs", "1"), "--recover-epochs"),
    ],
)
def test_quick_refuses_what_it_sets_itself(benchmark, tmp_path, flags, named):
    code, _, said = benchmark(app, "--quick", "-o", tmp_path / "out", *flags)
    assert (code, said) == (2, f"edvit: --quick sets {named} itself: leave one or the other out\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "links"), [((), 1), (("--link", "5mbit", "--link", "9mbit"), 2)])
def test_quick_goes_with_the_rest(benchmark, tmp_path, monkeypatch, flags, links):
    asked = {}

    def compare(settings, _out, **how):
        asked.update(how, settings=settings)
        raise ConfigError("seen")

    monkeypatch.setattr(compare_module, "compare", compare)
    benchmark(app, "--quick", "--data", "mnist", "--systems", "small", "-o", tmp_path / "out", *flags)
    assert (asked["settings"].data, asked["settings"].devices, asked["seeds"], asked["images"]) == ("mnist", 2, 1, 6)
    assert len(asked["links"]) == links
