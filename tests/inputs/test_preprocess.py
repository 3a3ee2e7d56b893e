import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from edvit.errors import CostlyFileError, ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs import formats
from edvit.inputs.datasets.folder import IMAGES
from edvit.inputs.formats import FORMATS
from edvit.inputs.preprocess import (
    MAX_PIXELS,
    Limits,
    Preprocessing,
    decode_image,
    image_to_array,
    read_file,
    spectrogram_to_array,
)

RGB = Preprocessing(image_size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
GREY = Preprocessing(image_size=16, channels=1, mean=(0.5,), std=(0.5,))
WIDE = Preprocessing(image_size=(24, 40), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
TALL = Preprocessing(image_size=(40, 24), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def empty_png(width, height):
    """A PNG whose header claims `width` x `height` pixels, without the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@given(arrays(np.uint8, (3, 16, 16)))
def test_an_image_of_the_right_size_passes_unchanged(pixels):
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels.transpose(1, 2, 0))), RGB), pixels)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "LA"]))
@settings(deadline=None)
def test_any_size_and_mode_becomes_the_same_shape(width, height, mode):
    for how in (RGB, GREY, WIDE, TALL):
        array = image_to_array(Image.new(mode, (width, height)), how)
        assert array.shape == how.shape
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous


RAMP = np.array([0, 127, 128, 257, 1000, 25_700, 51_400, 65_407, 65_408, 65_535])
EIGHT = np.array([0, 0, 0, 1, 4, 100, 200, 255, 255, 255], dtype=np.uint8)
"""`RAMP` in 8 bits."""


def deep_grey(mode):
    """16x16 pixels, each row a value of `RAMP`, and the same in 8 bits."""
    values = np.resize(RAMP, 16)[:, None].repeat(16, axis=1)
    pixels = values.astype({"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "=i4"}[mode])
    return Image.frombytes(mode, (16, 16), pixels.tobytes()), np.resize(EIGHT, 16)[:, None].repeat(16, axis=1)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("I;16", "PNG"), ("I;16B", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM"), ("I", "PPM")],
)
@pytest.mark.parametrize("how", [RGB, GREY], ids=["rgb", "grey"])
def test_sixteen_bits_are_scaled_to_eight(mode, form, how):
    image, expected = deep_grey(mode)
    for pixels in decode_image(encode(image, form), how):
        assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_in_memory_are_scaled_too(mode):
    image, expected = deep_grey(mode)
    assert np.array_equal(image_to_array(image, GREY)[0], expected)


def test_a_file_of_sixteen_bits_that_pillow_opens_as_32_is_scaled():
    """As Pillow 10 does with PNG."""
    image, expected = deep_grey("I")
    image.format = "PNG"
    assert np.array_equal(image_to_array(image, GREY)[0], expected)


def test_sixteen_bits_are_turned_by_exif_as_well():
    image, expected = deep_grey("I;16")
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    assert np.array_equal(decode_image(encode(image, "PNG", exif=exif), GREY)[0], expected[::-1])


def tiff_of_12_bits(pixels):
    """Two pixels in three bytes, as cameras write them; `pixels`: `[height, even width]`, 0 to 4,095."""
    first, second = pixels[:, ::2], pixels[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    where = 8 + len(packed)
    return struct.pack("<2sHI", b"II", 42, where) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_twelve_bits_of_a_camera_are_not_dark():
    values = np.resize([0, 8, 9, 16, 2048, 4094, 4095, 4095], 16)[:, None].repeat(16, axis=1)
    expected = np.resize(np.array([0, 0, 1, 1, 128, 255, 255, 255], np.uint8), 16)[:, None].repeat(16, axis=1)
    assert np.array_equal(decode_image(tiff_of_12_bits(values), GREY)[0], expected)


@pytest.mark.parametrize(("mode", "kind"), [("I", "signed or 32-bit"), ("F", "floating-point")])
def test_pixels_on_no_known_scale_are_refused(mode, kind):
    with pytest.raises(ImageError, match=f"{kind} pixels, which have no fixed white: convert it to 8 or 16 bits"):
        decode_image(encode(Image.new(mode, (20, 20), 1), "TIFF"), RGB)


WHITE = {"1": 1, "P": 1, "I;16": 65_535, "RGBA": (255,) * 4, "LA": (255, 255), "CMYK": (0,) * 4}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "LA"])
@pytest.mark.parametrize("how", [RGB, GREY], ids=["rgb", "grey"])
def test_white_is_white_in_any_mode(mode, how):
    white = WHITE.get(mode, 255 if mode == "L" else (255,) * 3)
    image = Image.new(mode, (20, 20), white)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    assert (image_to_array(image, how) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_as_torchvision_and_timm_drop_it(mode):
    colour = (10, 20, 30, 0) if mode == "RGBA" else (10, 0)
    image = Image.new(mode, (16, 16), colour)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(image_to_array(image, RGB), expected)
    assert "background" not in RGB.model_dump()


@pytest.mark.parametrize("how", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize(("alpha", "level"), [(255, 100), (0, 200), (51, 180)])
def test_transparency_is_composed_on_a_colour_that_is_asked_for(how, alpha, level):
    asked = Preprocessing.model_validate_json(how.model_copy(update={"background": "#c8c8c8"}).model_dump_json())
    for image in (Image.new("RGBA", (16, 16), (100, 100, 100, alpha)), Image.new("LA", (16, 16), (100, alpha))):
        assert np.abs(decode_image(encode(image), asked).astype(int) - level).max() <= 1


def test_a_palettes_transparent_colour_is_composed_as_well():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    data = encode(image, "PNG", transparency=1)
    white = RGB.model_copy(update={"background": "#ffffff"})
    assert (decode_image(data, white) == 255).all()
    assert (decode_image(data, RGB) == 9).all()
    assert read_file(data, RGB).remarks == ("transparent",)


def test_an_opaque_image_is_not_called_transparent_and_stays_as_it_is():
    data = encode(Image.new("RGBA", (16, 16), (1, 2, 3, 255)))
    assert read_file(data, RGB).remarks == ()
    white = RGB.model_copy(update={"background": "#ffffff"})
    assert np.array_equal(decode_image(data, white), decode_image(data, RGB))


@pytest.mark.parametrize("wrong", ["white", "#fff", "#GGGGGG", "#FFFFFF"])
def test_a_background_is_written_in_one_way(wrong):
    with pytest.raises(ValueError, match="background"):
        Preprocessing(**{**RGB.model_dump(), "background": wrong})


def test_resizing_keeps_the_centre_of_the_long_side():
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, 32:64] = 200  # the middle third
    assert (image_to_array(Image.fromarray(pixels), RGB)[:, :, 2:-2] == 200).all()


def test_interpolation_is_as_asked():
    image = Image.effect_noise((50, 50), 80)
    bilinear = GREY.model_copy(update={"interpolation": "bilinear"})
    assert not np.array_equal(image_to_array(image, GREY), image_to_array(image, bilinear))


def test_exif_orientation_is_obeyed():
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    array = decode_image(encode(Image.fromarray(pixels), "PNG", exif=exif), RGB)
    assert (array[:, :8] == 0).all()
    assert (array[:, 8:] == 255).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"])
def test_common_formats(form):
    assert decode_image(encode(Image.new("RGB", (40, 30), (200, 0, 0)), form), RGB)[0].min() > 150


def test_no_bytes():
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"", RGB)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def test_nothing_is_started_for_a_postscript_file(monkeypatch):
    """Pillow hands one to Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UnsupportedMediaError, match=r"not an image file: send PNG, JPEG, WEBP, .* HEIF or AVIF"):
        decode_image(EPS, RGB)


def test_every_kind_of_file_that_an_image_folder_may_hold_is_decoded():
    Image.init()
    assert formats.readable() == FORMATS
    assert {Image.registered_extensions()[suffix] for suffix in IMAGES} <= set(FORMATS)


@pytest.mark.parametrize("data", [b"hello", b"\x00" * 100, b"%PDF-1.7", b"<svg/>"])
def test_no_image(data):
    with pytest.raises(UnsupportedMediaError, match="not an image file"):
        decode_image(data, RGB)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_image(form, part):
    data = encode(Image.effect_noise((64, 64), 80), form)
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(data[: int(len(data) * part)], RGB)


@pytest.mark.parametrize("size", [(40_000, 40_000), (8_000, 8_000), (1, MAX_PIXELS + 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(size):
    with pytest.raises(TooLargeError, match="50,000,000 pixels: send a smaller one"):
        decode_image(empty_png(*size), RGB)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damage_anywhere_ends_in_an_array_or_an_image_error(data):
    original = encode(
        Image.new("RGB", (20, 20), (9, 80, 200)), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))
    )
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(damaged), RGB).shape == RGB.shape
    except ImageError as error:
        assert "\n" not in str(error)


# --- limits by the header ----------------------------------------------------------------------------------

FEW = Limits(memory_bytes=1_000_000, work=1_000_000)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encode(Image.new("RGB", (500, 500))), "1"),
        (encode(Image.new("L", (1000, 1000))), None),
        (encode(Image.fromarray(np.zeros((400, 400), np.uint16))), "1"),
        (encode(Image.fromarray(np.zeros((350, 350), np.uint16))), None),
        (encode(Image.new("RGB", (400, 500)), "WEBP"), "2"),
        (encode(Image.new("RGB", (900, 900)), "JPEG"), None),  # decoded at an eighth of its size
        (encode(Image.new("RGB", (500, 500)), "JPEG", progressive=True), "2"),
    ],
    ids=["rgb", "grey", "16-bit", "16-bit-smaller", "webp", "jpeg", "progressive"],
)
def test_the_memory_of_pixels_and_their_bits_is_known_from_the_header(data, size):
    limits = Limits(memory_bytes=1_000_000 if size != "1" else 999_999, work=10**9)
    if size is None:
        assert read_file(data, RGB, limits).array.shape == RGB.shape
        return
    with pytest.raises(TooLargeError, match=r"pixels takes .* MB, over 1 MB: send a smaller one"):
        read_file(data, RGB, limits)


def repeated_scans(count):
    data = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_by_everyone():
    with pytest.raises(CostlyFileError, match="scans, over 100: save it as a baseline JPEG"):
        decode_image(repeated_scans(2000), RGB)
    assert decode_image(repeated_scans(20), RGB).shape == RGB.shape


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("L", (1100, 1000))),
        b"P3\n110 100\n255\n" + b"1 2 3 " * 11_000,
    ],
    ids=["pixels", "text"],
)
def test_work_is_known_from_the_header(data):
    assert decode_image(data, RGB).shape == RGB.shape
    with pytest.raises(CostlyFileError, match="takes too long"):
        read_file(data, RGB, FEW._replace(memory_bytes=10**9))


# --- inputs that are not square ------------------------------------------------------------------------------------


def photograph(width, height):
    """Smooth, and different everywhere: a wrong crop or a swapped side shows."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8))


def covered_and_cropped(image, width, height):
    """With Pillow's own resize: the largest part of that shape around the centre, brought to that size."""
    scale = min(image.width / width, image.height / height)
    left, upper = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, upper, left + width * scale, upper + height * scale)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


@pytest.mark.parametrize("how", [RGB, WIDE, TALL], ids=["square", "wide", "tall"])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (40, 24), (400, 240), (12, 200), (200, 12)])
def test_the_largest_part_of_the_inputs_shape_is_scaled(how, width, height):
    image = photograph(width, height)
    expected = covered_and_cropped(image, how.image_size.width, how.image_size.height)
    found = decode_image(encode(image), how)
    assert found.shape == how.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@given(arrays(np.uint8, (3, 24, 40)))
def test_an_image_of_the_right_shape_passes_unchanged(pixels):
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels.transpose(1, 2, 0))), WIDE), pixels)


@pytest.mark.parametrize("how", [WIDE, TALL], ids=["wide", "tall"])
def test_a_jpeg_that_lies_on_its_side_is_turned_and_as_sharp_as_one_that_stands(how):
    """A JPEG decoder may leave out pixels: so many that the input is still covered once EXIF is followed."""
    stripes = np.zeros((160, 96, 3), np.uint8)
    for shift in range(4):
        stripes[:, shift::8] = 255
    upright = Image.fromarray(stripes if how is WIDE else stripes.transpose(1, 0, 2))  # stands where the input lies
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    turned = decode_image(encode(lying, "JPEG", exif=exif, quality=95, subsampling=0), how)
    standing = decode_image(encode(upright, "JPEG", quality=95, subsampling=0), how)
    assert np.abs(turned.astype(int) - standing.astype(int)).mean() < 3


def test_a_spectrogram_is_stretched_over_all_of_the_input():
    """Neither cropped nor kept square: time runs along the width."""
    grey = np.linspace(0, 255, 90).astype(np.uint8)[None].repeat(64, axis=0)
    array = spectrogram_to_array(grey, WIDE)
    assert array.shape == (3, 24, 40)
    assert array[0, :, 0].max() < 10 and array[0, :, -1].min() > 245
