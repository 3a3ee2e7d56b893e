from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edvit.builder.jobs.progress import Reporter
from edvit.builder.pipeline import build
from edvit.builder.train.teacher import STREAM_LIMIT_BYTES, stream_bytes
from edvit.builder.vit import backbone
from edvit.builder.work_size import work_size
from edvit.errors import ConfigError
from tiny_build import tiny_config

DEIT = backbone.describe(backbone.template("deit_tiny_patch16_224", image_size=112, channels=3, classes=10))
GB = 10**9


def size(**changed):
    """CIFAR-10's training images, eight views."""
    known = {
        "architecture": DEIT,
        "train": 45_000,
        "views": 8,
        "recovers": True,
        "fixed": 3 * GB,
        "limit_gb": None,
        "capacity": 1000 * GB,
    }
    return work_size(**{**known, **changed})


def test_without_a_limit_streams_take_twelve_gib_at_most_and_it_is_said():
    found, each = size(), stream_bytes(DEIT, 45_000, 8)
    assert len(found.wanted) * each > STREAM_LIMIT_BYTES >= found.streams == len(found.blocks) * each
    assert "follow the base model in 1 of 6 blocks and may be less accurate" in found.describe()
    assert found.unlimited == 6 * each
    assert "give --work-limit 44.5, or fewer --views" in found.describe()


def test_the_limit_that_the_message_names_is_enough():
    found = size(limit_gb=44.5)
    assert found.blocks == found.wanted
    assert found.describe() == "the work folder takes up to 44.5 GB (limit 44.5 GB)"
    assert size(limit_gb=44.4).blocks != found.wanted


@given(st.floats(3, 100), st.integers(4 * GB, 100 * GB), st.integers(100, 100_000), st.integers(1, 20))
def test_it_stays_under_the_limit(limit_gb, capacity, train, views):
    found = size(limit_gb=limit_gb, capacity=capacity, train=train, views=views)
    assert found.fixed + found.streams <= min(limit_gb * GB, capacity)
    assert set(found.blocks) <= set(found.wanted)


def test_half_of_a_small_disk_is_the_default():
    found = size(capacity=20 * GB)
    assert found.limit == 10 * GB
    assert found.fixed + found.streams <= 10 * GB
    assert size(capacity=6 * GB).blocks == (), "no room for streams, and none for a refusal"
    assert "follow the base model in no block" in size(capacity=6 * GB).describe()


def test_what_does_not_fit_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"takes 3.00 GB, and --work-limit allows 2.00 GB; give a larger"):
        size(limit_gb=2)
    with pytest.raises(ConfigError, match=r"takes 3.00 GB, and its disk has room for 2.50 GB"):
        size(capacity=int(2.5 * GB))


def test_a_build_without_recovery_follows_nothing_and_says_nothing_of_it():
    found = size(recovers=False)
    assert (found.streams, found.blocks, found.wanted) == (0, (), ())
    assert "follow" not in found.describe()


def test_a_build_says_its_need_before_anything_else_and_stays_under_it(tmp_path):
    file = io.StringIO()
    work = tmp_path / "work"
    build(tiny_config(), tmp_path / "out", work=work, report=Reporter(Console(file=file, width=200)))
    first = file.getvalue().splitlines()[0]
    assert first.startswith("  work       the work folder takes up to ")
    number, unit = first.split("up to ")[1].split()[:2]
    announced = float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    taken = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    assert taken <= announced


def test_a_limit_that_is_too_small_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"--work-limit allows 10\.0 kB"):
        build(tiny_config(work_limit=1e-5), tmp_path / "out", work=tmp_path / "work")
    assert list((tmp_path / "work").glob("[a-z]*")) == []
