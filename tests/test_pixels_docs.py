"""docs/bundle.md says how pixels are made, and its lines make the same ones to the bit."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edvit.inputs.preprocess import Preprocessing, decode_file
from edvit.runtime.source import to_array

PAGE = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text(encoding="utf-8")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def pixels():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.partition("## Pixels")[2], re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names["pixels"]


def photograph(width, height, grey):
    """Smooth, with some noise."""
    rng = np.random.default_rng(0)
    shape = (height, width) if grey else (height, width, 3)
    waves = np.add.outer(np.sin(np.arange(height) / 9), np.cos(np.arange(width) / 7))
    smooth = 128 + 50 * (waves if grey else waves[..., None])
    return Image.fromarray((smooth + rng.normal(0, 9, shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 500), (640, 480), (32, 32), (20, 31), (129, 64)])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("kind", [("RGB", "bicubic"), ("RGB", "bilinear"), ("L", "bicubic")])
def test_the_lines_make_the_pixels(pixels, tmp_path, size, suffix, kind):
    mode, interpolation = kind
    per_channel = (0.5,) * len(mode)
    how = Preprocessing(
        image_size=32, channels=len(mode), interpolation=interpolation, mean=per_channel, std=per_channel
    )
    for grey in (False, True):
        path = tmp_path / f"{grey}{suffix}"
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        photograph(*size, grey).save(path, exif=exif)
        ours = decode_file(path.read_bytes(), how)
        assert np.array_equal(ours, pixels(path, 32, mode, FILTERS[interpolation]))
        assert np.array_equal(ours, to_array(path, how))


def test_a_pil_image_is_taken_as_it_is(pixels, tmp_path):
    how = Preprocessing(image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    path, whole = tmp_path / "a.jpg", tmp_path / "a.png"
    photograph(640, 480, grey=False).save(path)
    Image.open(path).save(whole)
    with Image.open(path) as opened:
        from_image = to_array(opened, how)
        assert opened.size == (640, 480), "the caller's image is left as it is"
    assert np.array_equal(from_image, pixels(whole, 32))
    assert not np.array_equal(from_image, pixels(path, 32)), "as docs/api.md says"
