"""Decoding in real processes, with real files."""

import asyncio
import os
import signal

import numpy as np
import psutil
import pytest

from edvit.errors import (
    CostlyFileError,
    EdvitError,
    ImageError,
    OverloadedError,
    ServiceError,
    TooLargeError,
    UnsupportedMediaError,
)
from edvit.inputs.audio import Spectrogram
from edvit.inputs.preprocess import Preprocessing, decode_file
from edvit.runtime.http import decoders as module
from edvit.runtime.http.decoders import QUICK_BYTES, Decoders
from hostile_files import grey_16_bits, long_comment, noise, plain_ppm, scans
from serving import alive
from sounds import encoded, tone
from waiting import eventually

HOW = Preprocessing(image_size=8, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def decoders():
    started = Decoders(HOW)
    yield started
    started.close()


LONG_S = 60.0


def decode(decoders, data, client="somebody"):
    return asyncio.run(fresh(decoders).decode(data, client, LONG_S))[0]


def fresh(decoders):
    """The same, for another event loop."""
    decoders._threads = None
    return decoders


@pytest.mark.parametrize("data", [noise(20, 30), noise(500, 400), noise(64, 64, format="JPEG")], ids=["s", "l", "jpeg"])
def test_a_file_is_decoded_as_it_is_in_this_process(decoders, data):
    assert np.array_equal(decode(decoders, data), decode_file(data, HOW))


def test_a_large_file_is_decoded_by_a_process_of_its_own(decoders):
    data = noise(500, 400)
    assert len(data) > QUICK_BYTES
    before = children(decoders)
    decode(decoders, data)
    assert children(decoders) == before


def children(decoders):
    return {child.pid for child in psutil.Process(decoders._parent._process.pid).children()}


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"hello", UnsupportedMediaError, "not an image file"),
        (b"", ImageError, "empty"),
        (noise(64, 64)[:200], ImageError, "truncated or damaged"),
        (grey_16_bits(7000, 7000), TooLargeError, "7000x7000 pixels takes 392 MB, over 160 MB"),
        (scans(2000), CostlyFileError, "scans, over 100: save it as a baseline JPEG"),
        (grey_16_bits(64_000, 64_000, rows=1), TooLargeError, "more than 50,000,000 pixels"),
    ],
    ids=["text", "empty", "cut", "16-bits", "scans", "pixels"],
)
def test_what_is_refused_is_told_in_one_line(decoders, data, error, text):
    with pytest.raises(error, match=text) as caught:
        decode(decoders, data)
    assert "\n" not in str(caught.value)


def test_what_takes_too_long_is_ended_and_the_next_file_is_decoded(decoders, monkeypatch):
    monkeypatch.setattr(module, "THOROUGH", module.THOROUGH._replace(cpu_s=0.3))
    with pytest.raises(CostlyFileError, match=r"takes over 0\.3 s of processor time") as caught:
        decode(decoders, long_comment(10_000_000), "hostile")
    assert caught.value.http_status == 422
    data = noise(20, 30)
    assert np.array_equal(decode(decoders, data), decode_file(data, HOW))


def test_a_small_file_that_takes_long_is_decoded_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "QUICK", module.QUICK._replace(cpu_s=0.02))
    data = plain_ppm(50_000)
    assert len(data) < QUICK_BYTES
    decoders = Decoders(HOW)
    try:
        assert np.array_equal(decode(decoders, data, "slow"), decode_file(data, HOW))
        assert decoders._is_suspect("slow")
        assert not decoders._is_suspect("somebody")
        assert np.array_equal(decode(decoders, data, "slow"), decode_file(data, HOW))
    finally:
        decoders.close()


def test_a_decoder_has_a_limit_of_memory(decoders, monkeypatch):
    # What a file takes is seen from its header; this is the limit that holds where the header lies.
    monkeypatch.setattr(module, "THOROUGH", module.THOROUGH._replace(memory_bytes=10_000_000))
    with pytest.raises(TooLargeError, match="takes too much memory"):
        decode(decoders, grey_16_bits(3000, 3000))


def test_a_file_waits_no_longer_than_it_may_and_tells_how_long_it_did(decoders):
    small, large = noise(20, 30), noise(500, 400)

    async def run():
        fresh(decoders)
        async with decoders._thorough.place("another"):
            with pytest.raises(OverloadedError, match=r"no decoder was free for 0\.3 s"):
                await decoders.decode(large, "polite", 0.3)
            waiting = asyncio.create_task(decoders.decode(large, "polite", LONG_S))
            await asyncio.sleep(0.3)
        return (await waiting)[1], (await decoders.decode(small, "polite", LONG_S))[1]

    waited_s, at_once_s = asyncio.run(run())
    assert waited_s >= 0.25
    assert at_once_s < waited_s


def test_nobody_waits_for_a_file_that_takes_long(decoders, monkeypatch):
    monkeypatch.setattr(module, "THOROUGH", module.THOROUGH._replace(cpu_s=0.2))
    data = noise(20, 30)

    async def run():
        fresh(decoders)
        long = [asyncio.create_task(decoders.decode(long_comment(5_000_000), "hostile", LONG_S)) for _ in range(4)]
        await asyncio.sleep(0)
        arrays = [(await decoders.decode(data, "polite", LONG_S))[0] for _ in range(20)]
        assert not any(task.done() for task in long[1:])
        results = await asyncio.gather(*long, return_exceptions=True)
        assert [type(result) for result in results] == [CostlyFileError] * 4
        return arrays

    assert all(np.array_equal(array, decode_file(data, HOW)) for array in asyncio.run(run()))


def test_a_decoder_that_crashes_is_replaced(decoders):
    before = children(decoders)
    for pid in before:
        os.kill(pid, signal.SIGSEGV)
    data = noise(20, 30)
    for _ in range(2):
        assert np.array_equal(decode(decoders, data, "unlucky"), decode_file(data, HOW))


def test_the_parent_of_the_decoders_is_started_again():
    decoders = Decoders(HOW)
    data = noise(500, 400)
    try:
        decoders._parent._process.kill()
        assert np.array_equal(decode(decoders, data), decode_file(data, HOW))
        assert np.array_equal(decode(decoders, noise(20, 30)), decode_file(noise(20, 30), HOW))
    finally:
        decoders.close()


def test_close_leaves_no_process():
    decoders = Decoders(HOW)
    processes = [psutil.Process(pid) for pid in children(decoders)]
    parent = psutil.Process(decoders._parent._process.pid)
    assert len(processes) == module.QUICK_PROCESSES
    decoders.close()
    eventually(lambda: not any(map(alive, [parent, *processes])))
    with pytest.raises(ServiceError, match="the gateway is ending"):
        decode(decoders, noise(500, 400))


def test_sounds_go_the_same_way():
    how = HOW.model_copy(update={"spectrogram": Spectrogram(seconds=0.2)})
    decoders = Decoders(how)
    try:
        data = encoded(tone(440, 0.2))
        assert np.array_equal(decode(decoders, data), decode_file(data, how))
        with pytest.raises(EdvitError, match="not a sound file"):
            decode(decoders, noise(20, 30))
    finally:
        decoders.close()
