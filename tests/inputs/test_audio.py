import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import MissingExtraError, SoundError, TooLargeError, UnsupportedMediaError
from edvit.inputs import audio
from edvit.inputs.audio import (
    BYTES_A_SAMPLE,
    Spectrogram,
    decode_clip,
    duration_and_rate,
    log_mel,
    mel_filters,
    read_clip,
    to_grey,
)
from edvit.inputs.preprocess import Preprocessing, decode_file
from sounds import encoded, tone

HOW = Spectrogram()


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        Spectrogram(window=512, hop=200, mels=40),
        Spectrogram(sample_rate=22_050, seconds=0.7, fft=1024, window=551),
    ],
)
def test_the_spectrogram_is_torchaudios(how):
    torchaudio = pytest.importorskip("torchaudio")
    reference = torchaudio.transforms.MelSpectrogram(
        how.sample_rate,
        n_fft=how.fft,
        win_length=how.window,
        hop_length=how.hop,
        f_min=how.f_min,
        n_mels=how.mels,
        pad_mode="constant",
        mel_scale="htk",
    ).double()
    clip = tone(700, how.seconds, how.sample_rate)
    power = reference(torch.from_numpy(clip).double()).numpy() * (2 / np.hanning(how.window + 1).sum()) ** 2
    expected = 10 * np.log10(np.maximum(power, 10 ** (how.floor_db / 10)))
    found = log_mel(clip, how)
    assert found.shape == (how.mels, how.frames) == expected.shape
    # dB; 1e-4 of the range is 0.01.
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("band", [15, 30, 60])
def test_a_sine_of_full_scale_is_about_0_db_in_its_own_band(band):
    hertz = mel_filters(HOW)[band].argmax() * HOW.sample_rate / HOW.fft
    clip = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
    middle = log_mel(clip, HOW)[:, 50]
    assert middle.argmax() == band
    assert -2 < middle.max() < 3


def test_silence_is_black_and_low_frequencies_lie_at_the_bottom():
    silent = to_grey(log_mel(np.zeros(16_000, np.float32), HOW), HOW)
    assert silent.shape == (64, 101)
    assert not silent.any()
    low = to_grey(log_mel(tone(150), HOW), HOW)
    assert low[-8:].max() > low[:8].max()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")],
)
def test_common_formats_are_decoded(kind, subtype):
    sound = tone(440)
    assert np.abs(decode_clip(encoded(sound, kind=kind, subtype=subtype), HOW) - sound).max() < 1e-4


def test_an_mp3_is_known_by_its_content():
    sound = tone(440)
    found = decode_clip(encoded(sound, kind="MP3"), HOW)
    assert np.abs(np.fft.rfft(found)).argmax() == 440


def test_channels_are_averaged():
    sound = tone(440)
    stereo = np.stack([sound, np.zeros_like(sound)], axis=1)
    assert np.abs(decode_clip(encoded(stereo), HOW) - sound / 2).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled(rate):
    expected = tone(440, rate=16_000, seed=1)
    found = decode_clip(encoded(tone(440, rate=rate, seed=1), rate), HOW)
    assert found.shape == expected.shape
    # The noise of the two differs; the tone must not.
    assert np.abs(found - expected)[800:-800].mean() < 0.02


@given(seconds=st.floats(0.01, 3.0), rate=st.sampled_from([8000, 11_025, 16_000, 44_100]))
def test_every_clip_has_the_same_length(seconds, rate):
    found = decode_clip(encoded(tone(300, seconds, rate), rate), HOW)
    assert found.shape == (HOW.samples,)
    assert found.dtype == np.float32


def test_the_middle_of_a_long_clip_is_kept_and_silence_put_around_a_short_one():
    long = np.concatenate([np.zeros(16_000), tone(440), np.zeros(16_000)]).astype(np.float32)
    assert np.abs(decode_clip(encoded(long), HOW) - tone(440)).max() < 1e-4
    short = decode_clip(encoded(tone(440, 0.5)), HOW)
    assert not short[:3999].any()
    assert not short[-3999:].any()
    assert np.abs(short[4000:12_000] - tone(440, 0.5)).max() < 1e-4


@pytest.mark.parametrize("data", [b"RIFF", b"hello, world" * 100, b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_is_no_sound_file_is_unsupported(data):
    with pytest.raises(UnsupportedMediaError, match="not a sound file"):
        decode_clip(data, HOW)


def test_sounds_that_cannot_be_used_say_why():
    with pytest.raises(SoundError, match="empty"):
        decode_clip(b"", HOW)
    with pytest.raises(SoundError, match="no samples"):
        decode_clip(encoded(np.zeros(0, np.float32)), HOW)
    with pytest.raises(SoundError, match="not numbers"):
        decode_clip(encoded(np.full(16_000, np.nan, np.float32), subtype="FLOAT"), HOW)
    damaged = bytearray(encoded(tone(440), kind="FLAC"))
    del damaged[len(damaged) // 3 :]
    with pytest.raises(SoundError, match=r"truncated|damaged"):
        decode_clip(bytes(damaged), HOW)


def test_too_many_samples_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SAMPLES", 30_000)
    with pytest.raises(TooLargeError, match="32,000 samples"):
        decode_clip(encoded(np.zeros((40_000, 2), np.float32)), HOW)


def test_the_memory_of_a_clip_is_known_from_the_header():
    data = encoded(np.zeros((40_000, 2), np.float32))
    assert len(read_clip(data, HOW, 32_000 * BYTES_A_SAMPLE).samples)
    with pytest.raises(TooLargeError, match="32,000 samples, over 31,999: send a shorter one"):
        read_clip(data, HOW, 31_999 * BYTES_A_SAMPLE)


def test_without_the_extra_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soxr", None)
    with pytest.raises(MissingExtraError, match=r"edvit\[audio\]"):
        decode_clip(encoded(tone(440)), HOW)


def test_duration_reads_the_header(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(440, 2.5, 8000), 8000)
    assert duration_and_rate(tmp_path / "a.flac") == (2.5, 8000)


@pytest.mark.parametrize("wrong", [{"window": 600}, {"f_min": 8000.0}, {"seconds": 0}, {"mels": 1}])
def test_settings_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(ValueError):
        Spectrogram(**wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sound_fills_the_whole_input(channels):
    how = Preprocessing(
        image_size=32, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels, spectrogram=HOW
    )
    array = decode_file(encoded(tone(2000)), how)
    assert array.shape == how.shape
    assert array.dtype == np.uint8
    assert (array == array[0]).all()
    # The tone is a bright line from the first column to the last.
    assert (array[0].max(axis=0) > 150).all()


def test_preprocessing_of_images_is_written_as_before():
    how = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.5,))
    assert "spectrogram" not in how.model_dump()
    again = Preprocessing.model_validate_json(how.model_copy(update={"spectrogram": HOW}).model_dump_json())
    assert again.spectrogram == HOW


@pytest.mark.parametrize(("rate", "most"), [(8000, 191), (16_000, 126), (22_050, 115), (44_100, 70), (48_000, 66)])
def test_bands_that_stay_empty_are_refused_with_the_most_that_do_not(rate, most):
    assert mel_filters(Spectrogram(sample_rate=rate, mels=most)).max(axis=1).min() > 0
    for more in (most + 1, 512):
        with pytest.raises(ValueError, match=rf"{more} mel bands .* would be empty: give {most} mels at most"):
            Spectrogram(sample_rate=rate, mels=more)
    Spectrogram(sample_rate=rate)  # the default fits every common rate


def test_where_no_number_of_bands_would_do_something_else_has_to_change():
    with pytest.raises(ValueError, match="raise fft, or lower f_min"):
        Spectrogram(f_min=7999.0)


def test_how_many_bands_would_be_empty_is_said():
    with pytest.raises(ValueError, match=r"128 mel bands .* 512 points at 16,000 Hz .*, 1 of them would be empty"):
        Spectrogram(mels=128)


@given(
    rate=st.sampled_from([8000, 16_000, 44_100]),
    fft=st.sampled_from([400, 401, 512, 1024]),
    mels=st.integers(4, 300),
    f_min=st.floats(0, 2000),
)
def test_bands_are_refused_exactly_where_a_filter_is_empty(rate, fft, mels, f_min):
    how = HOW.model_copy(update={"sample_rate": rate, "fft": fft, "mels": mels, "f_min": f_min})  # not checked
    empty = (mel_filters(how).max(axis=1) == 0).any()
    try:
        Spectrogram.model_validate(how.model_dump())
    except ValueError as error:
        assert empty, error
    else:
        assert not empty


def streamed(data):
    """A FLAC file as an encoder leaves it that writes into a pipe: no length and no digest in the header."""
    data = bytearray(data)
    data[21] &= 0xF0
    data[22:42] = bytes(20)
    return bytes(data)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("seconds", [0.05, 0.3, 2.5])
def test_a_streamed_flac_is_read_as_the_whole_one(tmp_path, subtype, seconds):
    stereo = np.stack([tone(440, seconds), tone(300, seconds)], axis=1)
    whole = encoded(stereo, kind="FLAC", subtype=subtype)
    assert np.array_equal(decode_clip(streamed(whole), HOW), decode_clip(whole, HOW))
    (tmp_path / "a.flac").write_bytes(streamed(whole))
    assert duration_and_rate(tmp_path / "a.flac") == (seconds, 16_000)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7])
def test_a_streamed_flac_that_is_cut_is_read_as_far_as_it_goes_or_refused(part):
    data = streamed(encoded(tone(440), kind="FLAC"))
    try:
        assert decode_clip(data[: int(len(data) * part)], HOW).shape == (HOW.samples,)
    except SoundError as error:
        assert "\n" not in str(error)
    except UnsupportedMediaError as error:
        assert "\n" not in str(error)


def test_a_clip_tells_its_rate_and_whether_it_is_silent_or_clipped():
    loud, quiet = np.clip(4 * tone(440), -1, 1), 1e-4 * tone(440)
    assert [
        (clip.rate, clip.silent, clip.clipped)
        for clip in (
            read_clip(encoded(tone(440, rate=8000), 8000), HOW),
            read_clip(encoded(loud), HOW),
            read_clip(encoded(quiet, subtype="FLOAT"), HOW),
            read_clip(encoded(np.zeros(16_000, np.float32)), HOW),
        )
    ] == [(8000, False, False), (16_000, False, True), (16_000, True, False), (16_000, True, False)]
    # One sample at full scale is how music is levelled, and no clipping.
    peak = 0.9 * tone(440)
    peak[100] = 1.0
    assert not read_clip(encoded(peak), HOW).clipped


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_at_any_rate_windows_last_as_long_and_the_default_bands_fit(rate):
    how = Spectrogram.at(rate)
    assert how.window / rate == pytest.approx(0.025, rel=0.01)
    assert how.hop / rate == pytest.approx(0.01, rel=0.01)
    assert abs(how.frames - 101) <= 1
    assert Spectrogram.at(16_000) == HOW
