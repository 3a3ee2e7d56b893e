"""The limit of a device's cache: what goes, what stays, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from edvit.errors import ServiceError
from edvit.runtime.device.cache_folder import CacheFolder

KB = 1000


def name(number):
    return f"{number:064x}"


def add(cache, number, size=KB):
    with cache.adding(name(number), size) as new:
        new.write(b"m" * size)
        return new.keep(name(number))


def left_in(folder):
    return sorted(int(path.stem, 16) for path in folder.glob("*.onnx"))


def test_the_least_recently_used_file_goes_first(tmp_path):
    cache = CacheFolder(tmp_path, 3 * KB)
    for number in (1, 2, 3):
        add(cache, number).release()
        os.utime(tmp_path / f"{name(number)}.onnx", ns=(number, number))
    cache.hold(name(1)).release()
    add(cache, 4).release()
    assert left_in(tmp_path) == [1, 3, 4]
    cache.touch([name(3)])
    add(cache, 5).release()
    assert left_in(tmp_path) == [3, 4, 5]


def test_what_is_in_use_stays_however_old_it_is(tmp_path):
    cache = CacheFolder(tmp_path, 2 * KB)
    oldest = add(cache, 1)
    os.utime(oldest.path, ns=(1, 1))
    add(cache, 2).release()
    add(cache, 3).release()
    assert left_in(tmp_path) == [1, 3]
    held = cache.hold(name(3))
    with pytest.raises(
        ServiceError, match=r"finds no room in the cache: 0\.0 MB of 0\.0 MB are in use; .*--cache-limit"
    ):
        add(cache, 4)
    held.release()
    held.release()
    add(cache, 4).release()
    assert left_in(tmp_path) == [1, 4]
    assert oldest.path.exists()


def test_a_file_that_nothing_refers_to_is_no_longer_in_use(tmp_path):
    cache = CacheFolder(tmp_path, KB)
    held = add(cache, 1)
    del held
    add(cache, 2)
    assert left_in(tmp_path) == [2]


def test_time_in_use_counts_as_use(tmp_path):
    cache = CacheFolder(tmp_path, 2 * KB)
    used = add(cache, 1)
    add(cache, 2).release()
    os.utime(used.path, ns=(1, 1))
    used.release()
    os.utime(tmp_path / f"{name(2)}.onnx", ns=(10**18, 10**18))
    add(cache, 3).release()
    assert left_in(tmp_path) == [1, 3]


def test_a_file_larger_than_the_limit_is_refused_and_nothing_goes_for_it(tmp_path):
    cache = CacheFolder(tmp_path, 2 * KB)
    add(cache, 1).release()
    with pytest.raises(ServiceError, match="larger than the limit"):
        add(cache, 2, 3 * KB)
    assert left_in(tmp_path) == [1]


def test_a_smaller_limit_holds_from_the_start(tmp_path):
    cache = CacheFolder(tmp_path)
    for number in (1, 2, 3):
        add(cache, number).release()
        os.utime(tmp_path / f"{name(number)}.onnx", ns=(number, number))
    CacheFolder(tmp_path, KB)
    assert left_in(tmp_path) == [3]


def test_files_of_others_stay_and_do_not_count(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x" * 10 * KB)
    (tmp_path / "model.onnx").write_bytes(b"x" * 10 * KB)
    (tmp_path / f"{name(9)}.onnx").mkdir()
    cache = CacheFolder(tmp_path, KB)
    add(cache, 1).release()
    add(cache, 2).release()
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.jpg",
        "model.onnx",
        f"{name(9)}.onnx",
        f"{name(2)}.onnx",
    }


def test_a_file_that_is_being_written_counts_in_full_and_stays(tmp_path):
    cache = CacheFolder(tmp_path, 2 * KB)
    with cache.adding(name(1), 2 * KB) as new:
        new.write(b"m")
        with pytest.raises(ServiceError, match="finds no room"):
            add(CacheFolder(tmp_path, 2 * KB), 2)
        assert new.part.exists()
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import os, sys
from pathlib import Path
from edvit.runtime.device.cache_folder import CacheFolder

cache = CacheFolder(Path(sys.argv[1]), 2000)
held = cache.hold("1".zfill(64))
with cache.adding("2".zfill(64), 1000) as new:
    new.write(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_another_process_holds_and_writes_until_it_is_killed(tmp_path):
    cache = CacheFolder(tmp_path, 2 * KB)
    add(cache, 1).release()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(ServiceError, match="finds no room"):
            add(cache, 3)
        assert len(list(tmp_path.glob(".*.part"))) == 1
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    assert len(list(tmp_path.glob(".*.part"))) == 1
    CacheFolder(tmp_path, 2 * KB)
    assert list(tmp_path.glob(".*.part")) == []
    add(cache, 3).release()
    add(cache, 4).release()
    assert left_in(tmp_path) == [3, 4]


def test_threads_that_add_at_once_keep_the_limit(tmp_path):
    cache, sizes, done = CacheFolder(tmp_path, 5 * KB), [], threading.Event()

    def watch():
        while not done.is_set():
            with os.scandir(tmp_path) as entries:
                names = [entry.name for entry in entries]
            sizes.append(len([file for file in names if file.endswith(".onnx")]))

    def add_some(first):
        for number in range(first, first + 20):
            add(cache, number).release()

    watcher = threading.Thread(target=watch)
    adders = [threading.Thread(target=add_some, args=(100 * i,)) for i in range(1, 4)]
    for thread in (watcher, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    done.set()
    watcher.join()
    assert max(sizes) <= 5
    assert len(left_in(tmp_path)) == 5
