import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.inputs import flac
from sounds import encoded, tone


def streamed(data):
    """As an encoder leaves a file that it writes into a pipe: no length and no digest in the header."""
    left = bytearray(data)
    left[21] &= 0xF0
    left[22:42] = bytes(20)
    return bytes(left)


@given(
    frames=st.integers(1, 30_000),
    rate=st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 12_345, 655_350]),
    channels=st.integers(1, 8),
    subtype=st.sampled_from(["PCM_S8", "PCM_16", "PCM_24"]),
)
@settings(deadline=None, max_examples=60)
def test_the_length_is_found_and_the_samples_are_those_of_the_whole_file(frames, rate, channels, subtype):
    sound = np.repeat(tone(440, 2, 16_000)[:frames, None], channels, axis=1)
    whole = encoded(sound, rate, kind="FLAC", subtype=subtype)
    mended = flac.with_length(streamed(whole))
    expected, _ = soundfile.read(io.BytesIO(whole), always_2d=True)
    found, _ = soundfile.read(io.BytesIO(mended), always_2d=True)
    assert np.array_equal(found, expected)


def test_a_tag_after_the_last_frame_changes_nothing():
    data = streamed(encoded(tone(440), kind="FLAC"))
    assert flac.with_length(data + b"TAG" + bytes(125))[: len(data)] == flac.with_length(data)


def test_a_length_beyond_the_tail_is_found():
    long = encoded(tone(440, 60), kind="FLAC")
    assert len(long) > 1 << 20
    assert len(soundfile.SoundFile(io.BytesIO(flac.with_length(streamed(long))))) == 960_000


@pytest.mark.parametrize(
    "data", [b"", b"fLaC", b"fLaC" + bytes(60), b"RIFF" + bytes(60), b"fLaC" + b"\xff\xf8" * 600_000]
)
def test_what_has_no_frame_has_no_length(data):
    assert flac.with_length(data) is None


@given(st.data())
@settings(deadline=None)
def test_damage_anywhere_ends_in_a_file_or_in_none(data):
    damaged = bytearray(streamed(encoded(tone(440, 0.1), kind="FLAC")))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    mended = flac.with_length(bytes(damaged))
    assert mended is None or len(mended) == len(damaged)
