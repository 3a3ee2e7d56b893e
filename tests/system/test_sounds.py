"""A folder of sounds, built, served by processes, and asked about WAV and FLAC files."""

import json

import numpy as np
import pytest
import soundfile

from serving import run, serving
from sounds import tone

HERTZ = {"high": 3000, "low": 200, "middle": 900}
BUILD = ["--model", "vit_digits_patch4_8", "--channels", "1", "--devices", "2", "--base-epochs", "20", "--no-baseline"]


def write(folder, clips, first):
    """Tones of one class are as loud as those of another, begin anywhere, and have noise on them."""
    for name, hertz in HERTZ.items():
        (folder / name).mkdir(parents=True)
        for i in range(first, first + clips):
            rng = np.random.default_rng((first + i, hertz))
            sound = np.roll(tone(hertz * rng.uniform(0.8, 1.25), 0.4, seed=i), rng.integers(4000))
            soundfile.write(folder / name / f"{i}.wav", sound, 16_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sound_file_comes_back_with_its_word(tmp_path):
    write(tmp_path / "tones" / "train", 40, 0)
    write(tmp_path / "tones" / "test", 6, 40)
    data = f"audiofolder:{tmp_path / 'tones'}"
    built = run("build", "--data", data, *BUILD, "--recover-epochs", "5", "-o", tmp_path / "bundle", timeout=900)
    assert built.returncode == 0, built.stderr
    assert "3 classes, 0.4 s of sound as 8×8" in built.stdout

    config = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["config"]
    assert {name: config[name] for name in ("seconds", "sample_rate", "mels")} == {
        "seconds": 0.4, "sample_rate": 16_000, "mels": 64,
    }  # fmt: skip

    shown = run("inspect", tmp_path / "bundle")
    assert "from 0.4 s of sound at 16,000 Hz in 64 mel bands" in " ".join(shown.stdout.split())

    with serving(tmp_path / "bundle", "--local") as served:
        wav = tmp_path / "tones" / "test" / "low" / "40.wav"
        flac = tmp_path / "again.flac"
        # Stereo, at another rate: what a user may well have.
        sound, rate = soundfile.read(wav)
        soundfile.write(flac, np.stack([np.repeat(sound, 2)] * 2, axis=1), 2 * rate)
        asked = run("predict", served.url, wav, flac, "--json")
        assert asked.returncode == 0, asked.stderr
        assert [json.loads(line)["label"] for line in asked.stdout.splitlines()] == ["low", "low"]

        picture = tmp_path / "picture.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        refused = run("predict", served.url, picture)
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"edvit: {picture}: not a sound file: send WAV, FLAC or another common format"
        ]

        over_http = json.loads(run("evaluate", served.url, "--data", data, "--json").stdout)
        here = json.loads(run("evaluate", tmp_path / "bundle", "--data", data, "--json").stdout)
        assert over_http["accuracy"] == here["accuracy"] >= 0.8
        assert over_http["degraded"] == 0
