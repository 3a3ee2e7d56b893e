"""Folders of sounds as people have them, held against soundfile's, NumPy's and soxr's own reading of the same files."""

import io

import numpy as np
import pytest
import soundfile
import soxr

from edvit.errors import DataError
from edvit.inputs.audio import Spectrogram, log_mel, to_grey
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing, spectrogram_to_array
from sounds import encoded, tone

SOUND = Spectrogram(seconds=0.25)
HOW = Preprocessing(image_size=16, channels=1, mean=(0.5,), std=(0.5,), spectrogram=SOUND)


@pytest.fixture
def write(tmp_path):
    """`write("a/1.wav", data)` puts a file into the training folder, beside two sounds in each of two classes."""

    def put(name, data):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    for label, hertz in (("high", 2000), ("low", 200)):
        for i in range(2):
            put(f"{label}/{i}.wav", encoded(tone(hertz + i, 0.25)))
    return put


@pytest.fixture
def read(tmp_path, write):
    return lambda: read_split(f"audiofolder:{tmp_path}", "train")


def by_hand(data):
    """The model's input from what soundfile reads of the whole file."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    wanted = int(np.ceil(SOUND.seconds * rate))
    start = max(0, len(samples) - wanted) // 2
    mono = samples[start : start + wanted].mean(axis=1)
    if rate != SOUND.sample_rate:
        mono = soxr.resample(mono, rate, SOUND.sample_rate)
    missing = max(0, SOUND.samples - len(mono))
    mono = np.pad(mono, (missing // 2, missing - missing // 2))
    start = (len(mono) - SOUND.samples) // 2
    mono = mono[start : start + SOUND.samples].astype(np.float32)
    return spectrogram_to_array(to_grey(log_mel(mono, SOUND), SOUND), HOW)


STEREO = np.stack([tone(440, 0.4), tone(900, 0.4)], axis=1)
KINDS = {
    "mono.wav": encoded(tone(440, 0.25)),
    "stereo.wav": encoded(STEREO),
    "six channels.wav": encoded(np.repeat(STEREO, 3, axis=1)),
    "eight bits.wav": encoded(tone(440), subtype="PCM_U8"),
    "24 bits.wav": encoded(tone(440), subtype="PCM_24"),
    "32 bits.wav": encoded(tone(440), subtype="PCM_32"),
    "float.wav": encoded(tone(440), subtype="FLOAT"),
    "double.wav": encoded(tone(440), subtype="DOUBLE"),
    "telephone.wav": encoded(tone(440, 0.25, 8000), 8000, subtype="ULAW"),
    "adpcm.wav": encoded(tone(440), subtype="IMA_ADPCM"),
    "extensible.wav": encoded(tone(440), kind="WAVEX"),
    "large.wav": encoded(tone(440), kind="RF64"),
    "LOUD.WAV": encoded(tone(440)),
    "a.wave": encoded(tone(440)),
    "a.flac": encoded(STEREO, kind="FLAC"),
    "a.FLAC": encoded(tone(440), kind="FLAC", subtype="PCM_24"),
    "a.ogg": encoded(tone(440), kind="OGG", subtype="VORBIS"),
    "a.oga": encoded(STEREO, kind="OGG", subtype="VORBIS"),
    "a.opus": encoded(tone(440, 1.0, 48_000), 48_000, kind="OGG", subtype="OPUS"),
    "a.mp3": encoded(tone(440, 1.0, 44_100), 44_100, kind="MP3"),
    "really mp3.wav": encoded(tone(440), kind="MP3"),
    "a.aiff": encoded(tone(440), kind="AIFF"),
    "a.au": encoded(tone(440), kind="AU"),
    "cd.wav": encoded(tone(440, 1.0, 44_100), 44_100),
    "studio.wav": encoded(tone(440, 1.0, 96_000), 96_000),
    "odd rate.wav": encoded(tone(440, 1.0, 11_025), 11_025),
    "one sample.wav": encoded(tone(440, 1 / 16_000)),
    "silence.wav": encoded(np.zeros(8000, np.float32)),
    "louder than full.wav": encoded(3 * tone(440), subtype="FLOAT"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_sound_of_any_usual_kind_is_what_soundfile_reads(write, read, name):
    path = write(f"low/{name}", KINDS[name])
    sounds = read()
    assert (len(sounds), sounds.notes) == (5, ())
    assert np.array_equal(sounds.prepared(sounds.paths.index(path), HOW), by_hand(KINDS[name]))


WHOLE = encoded(tone(440, 2), kind="FLAC")
DAMAGED = {
    "empty.wav": b"",
    "text.wav": b"no sound at all",
    "header only.wav": encoded(tone(440))[:44],
    "no samples.wav": encoded(np.zeros(0, np.float32)),
    "not numbers.wav": encoded(np.full(8000, np.nan, np.float32), subtype="FLOAT"),
    "picture.mp3": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "cut.flac": WHOLE[: len(WHOLE) // 3],
    "cut.ogg": encoded(tone(440), kind="OGG", subtype="OPUS")[:300],
    "page.mp3": b"<!DOCTYPE html><html>not found</html>",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_sound_is_told_in_one_line(write, read, name):
    path = write(f"low/{name}", DAMAGED[name])
    sounds = read()
    with pytest.raises(DataError) as caught:
        sounds.prepared(sounds.paths.index(path), HOW)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_sound_is_counted_and_clutter_is_not(write, read):
    for name in ("low/._1.wav", "low/.DS_Store", "high/@eaDir/1.wav", "__MACOSX/low/1.wav"):
        write(name, b"x")
    assert read().notes == ()
    for name in ("low/a.m4a", "low/b.M4A", "low/c.wma", "high/notes.txt"):
        write(name, b"x")
    sounds = read()
    assert (len(sounds), sounds.classes) == (4, ("high", "low"))
    assert sounds.notes == ("4 of 8 files of high, low skipped: 2 .m4a, 1 .txt, 1 .wma",)


def test_the_commonest_rate_and_the_median_length_are_told(write, read):
    assert read().typical() == (0.2, 16_000)
    for i in range(5):
        write(f"low/long{i}.wav", encoded(tone(200, 1.5, 8000), 8000))
    assert read().typical() == (1.5, 8000)


def test_remarks_tell_of_rate_silence_and_clipping(write, read):
    write("low/a.wav", KINDS["silence.wav"])
    write("low/b.wav", KINDS["louder than full.wav"])
    write("low/c.wav", KINDS["cd.wav"])
    sounds = read()
    remarks = {path.name: sounds.decoded(i, HOW).remarks for i, path in enumerate(sounds.paths) if path.stem in "abc"}
    assert remarks == {
        "a.wav": ("silent", "16,000 Hz"),
        "b.wav": ("clipped", "16,000 Hz"),
        "c.wav": ("44,100 Hz",),
    }


def test_an_empty_sound_is_told_as_a_file(write, read):
    path = write("low/empty.wav", b"")
    sounds = read()
    with pytest.raises(DataError, match=r"empty.wav: the sound is empty: it has no bytes; replace or remove the file$"):
        sounds.prepared(sounds.paths.index(path), HOW)
