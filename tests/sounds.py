"""Short sounds for tests, made from a seed, and written as sound files."""

from __future__ import annotations

import io

import numpy as np
import soundfile


def tone(hertz: float, seconds: float = 1.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A sine of half of full scale in a little noise, float32 `[samples]`."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(scale=0.01, size=len(times))
    return (0.5 * np.sin(2 * np.pi * hertz * times) + noise).astype(np.float32)


def encoded(sound: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """A sound file: `sound` is float, `[samples]` or `[samples, channels]`."""
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=kind, subtype=subtype)
    return buffer.getvalue()
