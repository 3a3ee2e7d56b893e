"""Files that are small, or at least allowed, and take much time or memory to decode."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def file(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def noise(width, height, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return file(Image.fromarray(pixels), **{"format": "PNG", **options})


def grey_16_bits(width, height, rows=None):
    """A PNG of zeros, a few bytes for each row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pack = zlib.compressobj()
    rows = b"".join(pack.compress(bytes(1 + 2 * width)) for _ in range(rows or height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def plain_ppm(pixels):
    """A PPM file of decimal numbers, which takes Pillow a microsecond a pixel and more."""
    return b"P3\n%d 1\n255\n" % pixels + b"255 12 1 " * pixels


def long_comment(size):
    """A PPM file whose comment Pillow reads one byte at a time."""
    return b"P6\n#" + b"x" * size + b"\n10 10\n255\n" + bytes(300)


def scans(count):
    """A progressive JPEG file, its last scan repeated."""
    data = file(Image.new("RGB", (64, 64)), format="JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def npy_header(text):
    """The beginning of an array's file, with this in place of its header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
