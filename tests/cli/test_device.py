from __future__ import annotations

from pathlib import Path

import pytest

from edvit.cli.device import alone, default_cache, give_memory_back


def test_models_are_cached_where_other_programs_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "edvit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == Path(tmp_path / "home" / ".cache" / "edvit")


@pytest.mark.parametrize(
    ("connect", "text"),
    [
        (["tcp/10.0.0.1:7447"], "still no gateway of fleet shelf at tcp/10.0.0.1:7447: is `edvit serve` running there"),
        (["tcp/a:1", "tcp/b:1"], "at tcp/a:1 or tcp/b:1:"),
        ([], "on the local network: start `edvit serve`, or say where with --connect"),
    ],
)
def test_a_device_that_is_alone_says_where_it_looks(connect, text):
    assert text in alone("shelf", connect)
    assert "\n" not in alone("shelf", connect)


def test_another_c_library_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_memory_back()
