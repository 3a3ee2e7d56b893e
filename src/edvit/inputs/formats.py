"""Which image files are read, whatever their names, and what reading some of them needs."""

from __future__ import annotations

from functools import cache

from PIL import features

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "HEIF", "AVIF")
"""Pillow's names of what is decoded. It knows forty more, and hands EPS to Ghostscript: no upload may do that.

HEIF stands before AVIF: both may begin with the brand `mif1`, and only HEIF's reader lets the other one try.
"""

EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), "JPEG2000"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".avif": "AVIF",
}
"""The files of an image folder that are read, by extension in lower case. A file is decoded as what it holds."""

_PARTS_OF_PILLOW = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def readable() -> tuple[str, ...]:
    """Those of `FORMATS` that can be decoded here."""
    built = features.get_supported()
    return tuple(
        name for name in FORMATS if (_has_heif() if name == "HEIF" else _PARTS_OF_PILLOW.get(name) in (None, *built))
    )


def needed_for(name: str) -> str:
    """What to do where a format of `FORMATS` is not `readable`."""
    if name == "HEIF":
        return "HEIC images need pillow-heif: pip install 'edvit[heif]'"
    return f"{name} images need a newer Pillow than the one that is installed: pip install -U pillow"


def looks_like_heif(data: bytes) -> bool:
    """Whether the first bytes are those of a HEIC file, as telephones write them."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def _has_heif() -> bool:
    """Whether pillow-heif is installed; it is made known to Pillow.

    Only the main image is ever decoded: no thumbnail in its place, no depth map beside it.
    """
    try:
        from pillow_heif import register_heif_opener
    except (ImportError, OSError):  # OSError: the package is there and its libheif cannot be loaded
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return True
