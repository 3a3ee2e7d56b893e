from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from edvit.runtime.device.cache_folder import CacheFolder
from edvit.runtime.doctor.machine import check_cache, check_clock, check_clocks, check_memory, check_processor

NOW = datetime(2026, 11, 28, 1, 2, 3, tzinfo=timezone.utc)
CORTEX_A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
CORTEX_A76 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes atomics asimdhp asimddp\n"


def test_this_machine_is_fine():
    for check in (check_processor(), check_memory(), check_clock()):
        assert check.state != "bad", check


@pytest.mark.parametrize(
    ("machine", "bits", "cpuinfo", "state", "says"),
    [
        ("aarch64", 64, CORTEX_A72, "good", "; asimd"),
        ("aarch64", 64, CORTEX_A76, "good", "; asimd, atomics, asimddp"),
        ("x86_64", 64, "flags\t\t: fpu avx2\n", "good", "; avx2"),
        ("x86_64", 64, "nothing", "good", "no special features"),
        ("aarch64", 32, CORTEX_A72, "bad", "32-bit Python"),
        ("armv7l", 32, CORTEX_A72, "bad", "armv7l"),
        ("riscv64", 64, "", "bad", "riscv64"),
    ],
)
def test_processors(machine, bits, cpuinfo, state, says):
    check = check_processor(machine, bits, cpuinfo)
    assert check.state == state
    assert says in check.says
    assert bool(check.advice) == (state == "bad")


def test_little_memory_is_a_warning():
    text = "MemTotal:        1000000 kB\nMemFree:   1 kB\nMemAvailable:  {} kB\nHugePages_Total:       0\n"
    assert check_memory(text.format(500_000)).says == "512 MB of 1,024 MB available"
    assert check_memory(text.format(100_000)).state == "warning"
    assert check_memory("nonsense").state == "warning"


@pytest.mark.parametrize(("year", "state"), [(1970, "bad"), (2025, "bad"), (2026, "good"), (2101, "bad")])
def test_a_clock_that_cannot_be_right_is_bad(year, state):
    assert check_clock(NOW.replace(year=year)).state == state


@pytest.mark.parametrize(("apart_s", "state"), [(0, "good"), (-59, "good"), (61, "warning"), (-86_401, "bad")])
def test_clocks_that_differ(apart_s, state):
    assert check_clocks(NOW + timedelta(seconds=apart_s), NOW).state == state


def test_the_cache_is_measured(tmp_path):
    with CacheFolder(tmp_path / "cache").adding("0" * 64, 2_000_000) as new:
        new.write(b"x" * 2_000_000)
        new.keep("0" * 64).release()
    check = check_cache(tmp_path / "cache", 5_000_000)
    assert check.state == "good"
    assert "1 models, 2 MB of at most 5 MB" in check.says
    assert check_cache(tmp_path / "cache", 10**18).state == "warning"


def test_a_cache_that_is_not_there_is_not_made(tmp_path):
    assert check_cache(tmp_path / "a" / "cache", 1).state == "good"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_bad(tmp_path):
    (tmp_path / "file").write_text("")
    check = check_cache(tmp_path / "file" / "cache", 1)
    assert (check.state, check.advice.split(",")[0]) == ("bad", "choose another --cache")
