from __future__ import annotations

from pathlib import Path

from edvit.cli.device import default_cache, give_memory_back


def test_models_are_cached_where_other_programs_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "edvit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == Path(tmp_path / "home" / ".cache" / "edvit")


def test_another_c_library_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_memory_back()
