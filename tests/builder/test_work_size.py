from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edvit.builder.jobs.artifacts import WorkFolder
from edvit.builder.jobs.progress import Reporter
from edvit.builder.pipeline import build
from edvit.builder.vit import backbone
from edvit.builder.work_size import work_size
from edvit.errors import ConfigError
from edvit.fleet import local_fleet
from edvit.plan.make import make_plan
from tiny_build import tiny_config

GB = 10**9


@pytest.fixture(scope="module")
def plan():
    deit = backbone.describe(backbone.template("deit_tiny_patch16_224", image_size=112, channels=3, classes=10))
    return make_plan(deit, local_fleet(5), groups=None, keep=None, attention="dims", rotated=True, seed=0)


@pytest.fixture(scope="module")
def size(plan):
    """CIFAR-10's training images, eight views."""

    def found(**changed):
        known = {"train": 45_000, "views": 8, "recovers": True, "fixed": 3 * GB, "limit_gb": None}
        return work_size(plan, **{**known, "capacity": 1000 * GB, "share": 500 * GB, **changed})

    return found


def test_what_is_followed_does_not_depend_on_the_limit(size):
    wide, narrow = size(), size(limit_gb=20)
    assert wide.blocks == narrow.blocks == (5, 6, 7, 8, 9, 10)
    assert (wide.kept, wide.slower) == (8, 1.0)
    assert 0 < narrow.kept < 8


def test_the_limit_that_the_message_names_is_enough(size):
    found = size(limit_gb=20)
    assert "keeps the base model's streams of 3 of 8 views, and recovery computes the others" in found.describe()
    assert "the same accuracy, up to" in found.describe()
    assert "give --work-limit 44.5, or fewer --views" in found.describe()
    found = size(limit_gb=44.5)
    assert found.kept == 8
    assert found.describe() == "the work folder takes up to 44.5 GB (limit 44.5 GB)"
    assert size(limit_gb=44.4).kept == 7


def test_the_fewer_views_are_kept_the_slower_recovery_is(size):
    slower = [size(limit_gb=limit).slower for limit in (44.5, 40, 20, 3)]
    assert slower == sorted(slower)
    assert slower[-1] > 2, "a base model nine times as large as a sub-model runs beside it"


@given(st.floats(3, 100), st.integers(4 * GB, 100 * GB), st.integers(100, 100_000), st.integers(1, 20))
def test_it_stays_under_the_limit(size, limit_gb, capacity, train, views):
    found = size(limit_gb=limit_gb, capacity=capacity, train=train, views=views)
    assert found.fixed + found.streams <= min(limit_gb * GB, capacity)
    assert 0 <= found.kept <= found.views == views


def test_a_share_of_the_disk_is_the_default(size):
    found = size(share=10 * GB)
    assert found.limit == 10 * GB
    assert found.fixed + found.streams <= 10 * GB
    assert size(capacity=8 * GB).limit == 8 * GB, "the disk is fuller than when the share was settled"
    assert size(share=2 * GB).kept == 0, "no room for streams, and none for a refusal"


def test_what_does_not_fit_at_all_is_refused(size):
    with pytest.raises(ConfigError, match=r"takes 3.00 GB, and --work-limit allows 2.00 GB; give a larger"):
        size(limit_gb=2)
    with pytest.raises(ConfigError, match=r"takes 3.00 GB, and its disk has room for 2.50 GB"):
        size(capacity=int(2.5 * GB))


def test_a_build_without_recovery_follows_nothing_and_says_nothing_of_it(size):
    found = size(recovers=False)
    assert (found.streams, found.blocks, found.kept) == (0, (), 8)
    assert "streams" not in found.describe()


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
    assert list((tmp_path / "work").glob("*-*")) == []


def test_a_resumed_build_keeps_the_share_that_the_first_one_settled(tmp_path):
    folder = WorkFolder(tmp_path)
    assert folder.settled("limit", 100) == 100
    assert WorkFolder(tmp_path).settled("limit", 70) == 100, "the disk is fuller now"
    (tmp_path / "limit.json").write_text("")  # killed while it was written
    assert WorkFolder(tmp_path).settled("limit", 70) == 70


@pytest.mark.timeout(1200)
def test_a_build_without_room_for_streams_is_as_accurate_and_says_so(tiny_build, tmp_path):
    """Streams that are computed in recovery are those that would have been kept, but for rounding."""
    whole, work = tiny_build.built, tmp_path / "work"
    assert (whole.size.kept, whole.size.views) == (2, 2)
    file = io.StringIO()
    limit = (whole.size.fixed + whole.size.streams // 2) / GB
    bundle, half = build(
        tiny_config(work_limit=limit),
        tmp_path / "half",
        work=work,
        report=Reporter(Console(file=file, width=400)),
    )
    assert half.size.kept == 1
    assert bundle.manifest.config["views_kept"] == 1
    assert "keeps the base model's streams of 1 of 2 views" in file.getvalue().splitlines()[0]
    assert len(list(work.glob("teacher-*/streams.npy"))) == 1
    assert half.test.accuracy(half.test.fused) == pytest.approx(whole.test.accuracy(whole.test.fused), abs=0.02)
