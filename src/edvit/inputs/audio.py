"""From a sound file to a log-mel spectrogram; the same code when training and when serving, without torch.

libsndfile decodes (WAV, FLAC, OGG, MP3, AU: by content, whatever the file is called) and soxr resamples; both are the
extra `edvit[audio]`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edvit.errors import MissingExtraError, SoundError, TooLargeError, UnsupportedMediaError
from edvit.inputs import flac

if TYPE_CHECKING:
    from soundfile import SoundFile

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MAX_SAMPLES = 50_000_000
"""A clip that takes more samples, over all of its channels, is refused before it is decoded."""

BYTES_A_SAMPLE = 12
"""What reading a clip takes for each of its samples: as it is decoded, its level, and what is between."""

SILENT = 1e-3
"""Loudest sample, of full scale, of a clip that counts as silent: -60 dB."""
FULL_SCALE = 0.999
"""A sample of at least this level is at full scale."""
CLIPPED = 1e-3
"""Share of samples at full scale from which on a clip counts as clipped."""

_NO_LENGTH = 1 << 62
"""libsndfile gives 2^63 - 1 frames where a header tells none."""


class Spectrogram(BaseModel):
    """How a clip becomes a log-mel spectrogram `[mels, frames]`; windows of `window` samples, `hop` apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: int = Field(default=16_000, ge=1000, le=200_000)
    """Hz; a clip of another rate is resampled."""
    seconds: float = Field(default=1.0, gt=0, le=600)
    """Length of every clip: the middle of a longer one, silence around a shorter one."""
    window: int = Field(default=400, ge=16)
    """Samples, Hann; 25 ms at 16 kHz."""
    hop: int = Field(default=160, ge=1)
    fft: int = Field(default=512, ge=16)
    """Points; the window is padded with zeros to them."""
    mels: int = Field(default=64, ge=4, le=512)
    """Triangular filters on the mel scale (HTK's: 2595 log10(1 + f / 700)), their peaks 1."""
    f_min: float = Field(default=20.0, ge=0)
    """Hz."""
    floor_db: float = Field(default=-100.0, lt=0)
    """Power below it counts as it. 0 dB is about a sine of full scale, which comes to 3 dB at most."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Spectrogram:
        if self.window > self.fft:
            raise ValueError("the window is longer than the transform")
        if self.f_min >= self.sample_rate / 2:
            raise ValueError("f_min is over half the sample rate")
        empty = _empty_bands(self, self.mels)
        if empty:
            most = next((fewer for fewer in range(self.mels - 1, 3, -1) if not _empty_bands(self, fewer)), None)
            raise ValueError(
                f"{self.mels} mel bands are narrower than a transform of {self.fft} points at {self.sample_rate:,} Hz "
                f"tells apart, {empty} of them would be empty: "
                + ("raise fft, or lower f_min" if most is None else f"give {most} mels at most")
            )
        return self

    def __str__(self) -> str:
        return f"{self.seconds:g} s of sound at {self.sample_rate:,} Hz in {self.mels} mel bands"

    @classmethod
    def at(cls, sample_rate: int, **settings: Any) -> Spectrogram:
        """A spectrogram at a rate in Hz, whose windows are 25 ms long and 10 ms apart.

        Raises:
            ValidationError: the settings contradict each other.
        """
        window = max(16, round(0.025 * sample_rate))
        fft = max(512, 1 << (window - 1).bit_length())
        hop = max(1, round(0.01 * sample_rate))
        return cls(sample_rate=sample_rate, window=window, hop=hop, fft=fft, **settings)

    @property
    def samples(self) -> int:
        """Samples of a clip at `sample_rate`."""
        return max(1, round(self.seconds * self.sample_rate))

    @property
    def frames(self) -> int:
        return 1 + self.samples // self.hop


def log_mel(clip: Float32, how: Spectrogram) -> Float32:
    """Log-mel spectrogram in dB, float32 `[mels, frames]`, of `[samples]` between -1 and 1, at `how.sample_rate`.

    Frames are centred on multiples of `hop`, with silence beyond both ends.
    """
    window = np.hanning(how.window + 1)[:-1]
    left = (how.fft - how.window) // 2
    window = np.pad(window, (left, how.fft - how.window - left))
    padded = np.pad(clip.astype(np.float64), how.fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, how.fft)[:: how.hop]
    spectrum = np.fft.rfft(frames * window, axis=1)
    power = (np.abs(spectrum) * (2 / window.sum())) ** 2
    mel = mel_filters(how) @ power.T
    floor = 10 ** (how.floor_db / 10)
    return np.asarray(10 * np.log10(np.maximum(mel, floor)), dtype=np.float32)


@lru_cache(maxsize=8)
def mel_filters(how: Spectrogram) -> Float64:
    """`[mels, fft // 2 + 1]`: triangles between neighbouring points that lie evenly on the mel scale."""
    edges = _mel_edges(how, how.mels)
    bins = np.linspace(0, how.sample_rate / 2, how.fft // 2 + 1)
    width = np.diff(edges)[:, None]
    up = (bins - edges[:-2, None]) / width[:-1]
    down = (edges[2:, None] - bins) / width[1:]
    return np.asarray(np.maximum(0, np.minimum(up, down)))


def _mel_edges(how: Spectrogram, mels: int) -> Float64:
    """Hz, `[mels + 2]`: where so many triangles start, peak and end."""
    low, high = 2595 * np.log10(1 + np.array([how.f_min, how.sample_rate / 2]) / 700)
    return np.asarray(700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1))


def _empty_bands(how: Spectrogram, mels: int) -> int:
    """Triangles that no point of the transform falls into, so that they are empty whatever the clip."""
    step = how.sample_rate / 2 / (how.fft // 2)
    edges = _mel_edges(how, mels)
    next_point = (np.floor(edges[:-2] / step) + 1) * step
    return int((next_point >= edges[2:]).sum())


def to_grey(spectrogram: Float32, how: Spectrogram) -> npt.NDArray[np.uint8]:
    """A picture, uint8 `[mels, frames]`: low frequencies at the bottom, `floor_db` black, 0 dB white."""
    level = (spectrogram[::-1] - how.floor_db) / -how.floor_db
    return np.asarray(np.rint(np.clip(level, 0, 1) * 255), dtype=np.uint8)


@dataclass(frozen=True)
class Clip:
    """A decoded sound.

    Attributes:
        samples: one channel, float32 `[samples]` at the spectrogram's rate.
        rate: the file's own, Hz.
        silent: no sample of it is louder than `SILENT`.
        clipped: a share of at least `CLIPPED` of its samples are at full scale.
    """

    samples: Float32
    rate: int
    silent: bool
    clipped: bool


def read_clip(data: bytes, how: Spectrogram, memory_bytes: int | None = None) -> Clip:
    """Decode the middle of a sound file, `how.samples` long, in about `memory_bytes` at most where they are given.

    Raises:
        UnsupportedMediaError: the bytes are no sound file.
        TooLargeError: the part of it that is needed has too many samples, at `BYTES_A_SAMPLE` each.
        SoundError: the sound is empty, truncated or damaged.
        MissingExtraError: libsndfile or soxr are not installed.
    """
    if not data:
        raise SoundError("the sound is empty: it has no bytes")
    with _open(io.BytesIO(data)) as file:
        rate, channels, frames = file.samplerate, file.channels, len(file)
        if frames <= 0:
            raise SoundError("the sound has no samples")
        needed = min(frames, int(np.ceil(how.seconds * rate)))
        most = MAX_SAMPLES if memory_bytes is None else min(MAX_SAMPLES, memory_bytes // BYTES_A_SAMPLE)
        if needed * channels > most:
            raise TooLargeError(f"the clip has {needed * channels:,} samples, over {most:,}: send a shorter one")
        try:
            file.seek((frames - needed) // 2)
            sound = file.read(needed, dtype="float32", always_2d=True)
        except MemoryError:
            raise
        except Exception:  # libsndfile has one error for many kinds of damage
            raise SoundError("the sound is damaged: it cannot be decoded") from None
    if len(sound) < needed:
        raise SoundError(f"the sound is truncated: {len(sound):,} of {needed:,} samples can be decoded")
    clip = sound.mean(axis=1)
    if not np.isfinite(clip).all():
        raise SoundError("the sound has samples that are not numbers")
    level = np.abs(sound)
    silent, clipped = bool(level.max() <= SILENT), bool((level >= FULL_SCALE).mean() >= CLIPPED)
    if rate != how.sample_rate:
        import soxr

        clip = soxr.resample(clip, rate, how.sample_rate)
    return Clip(_middle(clip, how.samples), rate, silent, clipped)


def decode_clip(data: bytes, how: Spectrogram) -> Float32:
    """Decode a sound file to one channel, float32 `[how.samples]` at `how.sample_rate`. Raises as `read_clip`."""
    return read_clip(data, how).samples


def duration_and_rate(path: Path) -> tuple[float, int]:
    """Seconds and samples a second, from a sound file's header. Raises as `read_clip`, and OSError."""
    with path.open("rb") as stream, _open(stream) as file:
        return len(file) / float(file.samplerate), int(file.samplerate)


@contextmanager
def _open(stream: BinaryIO) -> Iterator[SoundFile]:
    check_installed()
    import soundfile

    try:
        file = soundfile.SoundFile(stream)
        if len(file) >= _NO_LENGTH:
            file.close()
            stream.seek(0)
            file = soundfile.SoundFile(io.BytesIO(flac.with_length(stream.read()) or b""))
    except Exception:  # RuntimeError's children, and TypeError where it takes the bytes for headerless ones
        raise UnsupportedMediaError("not a sound file: send WAV, FLAC or another common format") from None
    with file:
        yield file


def check_installed() -> None:
    """Raises MissingExtraError where sound files cannot be read here."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401 - one extra, told of at once
    except (ImportError, OSError):  # OSError: the package is there and its libsndfile is not
        raise MissingExtraError("sound files need libsndfile and soxr: pip install 'edvit[audio]'") from None


def _middle(clip: Float32, samples: int) -> Float32:
    """The middle `samples` of a clip, with silence around a shorter one."""
    missing = max(0, samples - len(clip))
    clip = np.pad(clip, (missing // 2, missing - missing // 2))
    start = (len(clip) - samples) // 2
    return np.asarray(clip[start : start + samples], dtype=np.float32)
