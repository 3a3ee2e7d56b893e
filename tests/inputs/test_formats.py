"""Formats beyond PNG and JPEG: each equal to Pillow's own decoding, and bounded as the others are."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from edvit.errors import ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs import formats, preprocess
from edvit.inputs.preprocess import Limits, Preprocessing, decode_image, read_image

formats.readable()  # makes pillow-heif known to Pillow, for `encode`
HOW = Preprocessing(image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
NEW = ("JPEG2000", "HEIF", "AVIF", "GIF", "WEBP")


def picture(size=(32, 32)):
    """A smooth picture whose four corners differ."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def without_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.readable.cache_clear()
    yield
    monkeypatch.undo()
    formats.readable.cache_clear()


@pytest.mark.parametrize("form", NEW)
def test_pixels_are_pillows_and_nearly_the_original(form):
    data = encode(picture(), form)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_image(data, HOW), expected)
    assert np.abs(expected.astype(int) - np.asarray(picture()).transpose(2, 0, 1)).mean() < 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_once_and_not_twice(form, orientation):
    """Telephones store turned pictures; in HEIC and AVIF the turn is told twice, in the file and in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = picture()
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain)).astype(int)
    found = decode_image(encode(picture(), form, exif=exif.tobytes()), HOW).transpose(1, 2, 0).astype(int)
    assert np.abs(found - expected).mean() < 12


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG", "AVIF"])
def test_the_first_of_several_frames_is_taken(form):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(data, HOW).astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 10


def test_a_jpeg_with_a_second_picture_in_it_is_read_as_cameras_write_it():
    data = encode(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    assert np.abs(decode_image(data, HOW).transpose(1, 2, 0).astype(int) - np.asarray(picture())).mean() < 12


def test_no_thumbnail_stands_in_for_a_heic_file():
    pillow_heif = pytest.importorskip("pillow_heif")
    large = picture((320, 320))
    data = encode(large, "HEIF", quality=-1, chroma=444)
    assert pillow_heif.options.THUMBNAILS is False
    expected = ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(decode_image(data, HOW).transpose(1, 2, 0), np.asarray(expected))


def test_without_pillow_heif_a_heic_file_says_what_to_install_and_the_rest_is_read(without_heif):
    with pytest.raises(UnsupportedMediaError, match=r"HEIC images need pillow-heif: pip install 'edvit\[heif\]'"):
        decode_image(b"\x00\x00\x00\x18ftypheic" + bytes(40), HOW)
    assert "HEIF" not in formats.readable()
    assert decode_image(encode(picture(), "AVIF"), HOW).shape == HOW.shape
    with pytest.raises(UnsupportedMediaError, match="not an image file: send PNG"):
        decode_image(b"hello", HOW)


@pytest.mark.parametrize("form", NEW)
def test_too_many_pixels_are_refused_before_any_is_decoded(monkeypatch, form):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 1000)
    data = encode(picture((40, 26)), form)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(TooLargeError, match=r"40x26, over (1,000|500) pixels"):
        decode_image(data, HOW)


def test_a_format_whose_decoder_takes_more_memory_may_have_fewer_pixels():
    limits = Limits(memory_bytes=10_000, work=10**9)
    assert read_image(encode(picture((25, 20)), "JPEG2000"), HOW, limits).array.shape == HOW.shape
    assert read_image(encode(picture((50, 50)), "PNG"), HOW, limits).array.shape == HOW.shape
    with pytest.raises(TooLargeError, match="decoding the image of 26x20 pixels takes"):
        read_image(encode(picture((26, 20)), "JPEG2000"), HOW, limits)


@pytest.mark.parametrize("form", NEW)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_file_is_an_image_error_of_one_line(form, part):
    data = encode(picture((64, 64)), form)
    try:
        decode_image(data[: int(len(data) * part)], HOW)
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("form", NEW)
def test_damage_anywhere_is_an_array_or_an_image_error(form):
    data, rng = encode(picture(), form), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(damaged), HOW).shape == HOW.shape
        except ImageError as error:
            assert "\n" not in str(error)
