"""Image files as people have them, in a folder: each what Pillow reads of it, or told in one line that names it."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from edvit.errors import DataError
from edvit.inputs import formats
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing

formats.readable()  # makes pillow-heif known to Pillow
HOW = Preprocessing(image_size=24, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def palette(**options):
    image = Image.fromarray(NOISE).quantize(16)
    return encode(image, **options)


def frames(form):
    others = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    return encode(Image.fromarray(NOISE), form, save_all=True, append_images=others, **options)


def turned(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(NOISE), form, exif=exif.tobytes())


def by_hand(data):
    """What timm's loader would make of it, scaled to the input: upright, RGB, cropped to the middle."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        return np.repeat(np.rint(np.asarray(image) / 257).astype(np.uint8)[None], 3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of palettes with an alpha for each colour
        rgb = image.convert("RGB")
    return np.asarray(ImageOps.fit(rgb, (24, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


RGB = Image.fromarray(NOISE)
GOOD = {
    "grey.png": encode(RGB.convert("L")),
    "black and white.png": encode(RGB.convert("1")),
    "16 bits.png": encode(Image.fromarray(RNG.integers(0, 65_536, (24, 24)).astype(np.uint16))),
    "palette.png": palette(),
    "palette with transparency.png": palette(transparency=3),
    "palette with an alpha for each.png": palette(transparency=bytes(range(0, 160, 10))),
    "colour key.png": encode(RGB, transparency=tuple(int(x) for x in NOISE[0, 0])),
    "alpha.png": encode(Image.fromarray(RNG.integers(0, 256, (24, 24, 4), dtype=np.uint8))),
    "grey and alpha.png": encode(Image.fromarray(RNG.integers(0, 256, (24, 24, 2), dtype=np.uint8))),
    "interlaced.png": encode(RGB, optimize=True),
    "turned.png": turned("PNG"),
    "animated.png": frames("PNG"),
    "cmyk.jpg": encode(RGB.convert("CMYK"), "JPEG"),
    "ycck.jpg": encode(RGB.convert("CMYK"), "JPEG", keep_rgb=False, subsampling=0),
    "grey.jpg": encode(RGB.convert("L"), "JPEG"),
    "progressive.jpg": encode(RGB, "JPEG", progressive=True),
    "turned.jpg": turned("JPEG"),
    "turned.webp": turned("WEBP"),
    "turned.tif": turned("TIFF"),
    "animated.gif": frames("GIF"),
    "animated.webp": frames("WEBP"),
    "pages.tiff": frames("TIFF"),
    "transparent.gif": encode(RGB.quantize(16), "GIF", transparency=2),
    "lzw.tif": encode(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk.tif": encode(RGB.convert("CMYK"), "TIFF"),
    "one pixel.png": encode(Image.new("RGB", (1, 1), (9, 8, 7))),
    "one pixel high.png": encode(Image.fromarray(NOISE[:1])),
    "one pixel wide.jpg": encode(Image.fromarray(NOISE[:, :1]), "JPEG"),
    "very wide.png": encode(Image.fromarray(np.tile(NOISE, (1, 40, 1)))),
    "32 bits.bmp": encode(RGB.convert("RGBA"), "BMP"),
    "a.jfif": encode(RGB, "JPEG"),
    "png called.jpg": encode(RGB),
    "jpeg called.PNG": encode(RGB, "JPEG"),
    "webp called.jpeg": encode(RGB, "WEBP"),
    "a.heic": encode(RGB, "HEIF"),
    "a.avif": encode(RGB, "AVIF"),
    "a.jp2": encode(RGB, "JPEG2000"),
    "alpha.webp": encode(RGB.convert("RGBA"), "WEBP", lossless=True),
    "more after the end.jpg": encode(RGB, "JPEG") + b"trailer of a telephone" * 20,
    "profile.jpg": encode(RGB, "JPEG", icc_profile=bytes(200)),
}


@pytest.fixture
def folder(tmp_path):
    """Two classes with one picture each, and `folder(name, data)` puts a third into the first."""

    def put(name, data):
        path = tmp_path / "train" / "a" / name
        path.write_bytes(data)
        images = read_split(f"imagefolder:{tmp_path}", "train")
        return images, images.paths.index(path)

    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        RGB.save(tmp_path / "train" / label / "plain.png")
    return put


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_of_any_kind_is_what_pillow_reads(folder, name):
    images, index = folder(name, GOOD[name])
    assert (len(images), images.notes) == (3, ())
    assert np.array_equal(images.prepared(index, HOW), by_hand(GOOD[name]))


def bomb():
    """A PNG whose header promises 60,000 times 60,000 pixels."""
    data = bytearray(encode(RGB))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    return bytes(data)


BAD = {
    "empty.png": b"",
    "text.jpg": b"not a picture",
    "a web page.jpg": b"<!DOCTYPE html><html></html>",
    "cut.png": encode(RGB)[:600],
    "cut.jpg": encode(Image.effect_noise((200, 200), 90), "JPEG")[:3000],
    "cut.gif": encode(RGB, "GIF")[:300],
    "cut.webp": encode(RGB, "WEBP")[:100],
    "cut.heic": encode(RGB, "HEIF")[:200],
    "header alone.png": b"\x89PNG\r\n\x1a\n",
    "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n",
    "huge.png": bomb(),
    "float.tif": encode(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"),
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "program.jpg": b"\x7fELF" + bytes(100),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n%%EOF\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_picture_is_told_in_one_line(folder, name):
    images, index = folder(name, BAD[name])
    with pytest.raises(DataError) as caught:
        images.prepared(index, HOW)
    assert str(caught.value).startswith(f"{images.name(index)}: ")
    assert str(caught.value).endswith("; replace or remove the file")
    assert "\n" not in str(caught.value)


def test_an_empty_picture_is_told_as_a_file(folder):
    images, index = folder("empty.png", b"")
    with pytest.raises(DataError, match=r"empty.png: the image is empty: it has no bytes; replace or remove the file$"):
        images.prepared(index, HOW)
