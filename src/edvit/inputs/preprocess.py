"""From an image or sound file to the uint8 array a sub-model takes; the same code when training and when serving.

Normalisation is not here: it is inside every exported graph.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from edvit.errors import CostlyFileError, ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs import formats
from edvit.inputs.audio import Spectrogram, log_mel, read_clip, to_grey
from edvit.shape.image import ImageSize

UInt8 = npt.NDArray[np.uint8]

TRANSPARENT, SILENT, CLIPPED = "transparent", "silent", "clipped"
"""Remarks on a file, see `Decoded`."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    Attributes:
        array: uint8 `[channels, height, width]`.
        remarks: what a user should know of the file: `TRANSPARENT`, `SILENT`, `CLIPPED`, and a sound's own rate.
    """

    array: UInt8
    remarks: tuple[str, ...] = ()


MAX_PIXELS = 50_000_000
"""Images with more pixels are refused before they are decoded."""

MAX_SCANS = 100
"""JPEG files with more scans are refused before they are decoded: each passes over every pixel. Encoders write ten."""


class Limits(NamedTuple):
    """What decoding one file may take, judged by the file's header.

    Attributes:
        memory_bytes: of the decoded pixels or samples, with what the file's decoder needs beside them.
        work: pixels or samples, times how often the decoder passes over each.
    """

    memory_bytes: int
    work: int


LIMITS = Limits(memory_bytes=600_000_000, work=MAX_PIXELS * MAX_SCANS)
"""For files of a user's own, as a build decodes them."""

_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 8, "I;16B": 8, "I;16L": 8, "I": 12}
"""Bytes a pixel while an image of a Pillow mode is brought to 8 bits; other modes have 4."""
_TIMES_THE_MEMORY = {"JPEG2000": 5, "WEBP": 3, "HEIF": 3, "AVIF": 3, "GIF": 2}
"""How much more memory a format's decoder takes for a pixel than the decoded pixel itself; others: 1."""
_PASSES = {"JPEG2000": 10, "AVIF": 5, "HEIF": 5, "WEBP": 3}
"""How much longer a format's decoder takes for a pixel than that of PNG."""
_PASSES_OF_PLAIN_TEXT = 100
"""The same of a PPM, PGM or PBM file whose pixels are written as decimal numbers."""

_BITS_PER_SAMPLE = 258
"""TIFF's tag."""
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocessing(BaseModel):
    """How an image or a sound becomes a sub-model's input `[channels, height, width]`, uint8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: ImageSize
    channels: Literal[1, 3]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...]
    """Per channel, on a scale of 0 to 1; applied inside the graph, recorded here for the reader."""
    std: tuple[float, ...]
    background: str | None = Field(default=None, pattern=r"^#[0-9a-f]{6}$")
    """Colour, `#rrggbb`, that transparent images are composed on. None, and absent where it is written down: they are
    not composed, and every pixel has the colour that is stored under its transparency."""
    spectrogram: Spectrogram | None = None
    """The model takes sounds, by this spectrogram; None, and absent where it is written down: images."""

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    @property
    def takes(self) -> str:
        """`an image` or `a sound`: the kind of file that the model is asked about."""
        return "an image" if self.spectrogram is None else "a sound"

    @property
    def media_type(self) -> Literal["image/*", "audio/*"]:
        """Media type of the files that the model takes."""
        return "image/*" if self.spectrogram is None else "audio/*"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.image_size)


def image_to_array(image: Image.Image, how: Preprocessing) -> UInt8:
    """Orient by EXIF, convert, scale until `image_size` is covered, cut its centre out: `[channels, height, width]`.

    Raises:
        ImageError: the pixels are numbers on no known scale.
    """
    white = _deep_white(image)  # asked first: the turned copy no longer knows its file's format
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied, and so would its memory
        image = ImageOps.exif_transpose(image)
    if white is not None:
        image = Image.fromarray(_to_8_bits(np.asarray(image), white))
    if how.background is not None and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, how.background), image.convert("RGBA"))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert(
            "RGBA"
        )  # Pillow warns where such a palette is converted at once; the colours are the same
    mode = "L" if how.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    height, width = how.image_size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=_RESAMPLE[how.interpolation])
    array = np.asarray(image, dtype=np.uint8)
    array = array[None] if how.channels == 1 else array.transpose(2, 0, 1)
    return np.ascontiguousarray(array)


def _deep_white(image: Image.Image) -> int | None:
    """What white is where pixels have more than 8 bits.

    Raises:
        ImageError: the pixels are 32-bit integers or floats; where white is, no file says.
    """
    # These two formats have nothing deeper, and Pillow may open their 16 bits as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow opens the 12 bits of an industrial camera's TIFF as 16, and does not scale them.
        (bits,) = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        return (1 << int(bits)) - 1
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ImageError(f"the image has {kind} pixels, which have no fixed white: convert it to 8 or 16 bits")
    return None


def _to_8_bits(deep: npt.NDArray[Any], white: int) -> UInt8:
    """0..`white` to 0..255, rounded; Pillow's own conversion takes everything over 255 for white."""
    shallow = np.empty(deep.shape, dtype=np.uint8)
    for row, into in zip(deep, shallow, strict=True):  # row by row, or the intermediate values would fill the memory
        into[:] = (row.astype(np.uint32) * 255 + white // 2) // white
    return shallow


def decode_file(data: bytes, how: Preprocessing, limits: Limits = LIMITS) -> UInt8:
    """Decode a file of the kind that `how` takes to `[channels, height, width]`, uint8.

    Raises:
        ImageError: as `decode_image`, or as `read_clip`.
    """
    return read_file(data, how, limits).array


def read_file(data: bytes, how: Preprocessing, limits: Limits = LIMITS) -> Decoded:
    """Decode a file as `decode_file` does, and remark on it."""
    if how.spectrogram is None:
        return read_image(data, how, limits)
    clip = read_clip(data, how.spectrogram, limits.memory_bytes)
    grey = to_grey(log_mel(clip.samples, how.spectrogram), how.spectrogram)
    told = {SILENT: clip.silent, CLIPPED: clip.clipped, rate_remark(clip.rate): True}
    return Decoded(spectrogram_to_array(grey, how), tuple(remark for remark, holds in told.items() if holds))


def rate_remark(rate: int) -> str:
    """`16,000 Hz`: the remark on a sound of this rate."""
    return f"{rate:,} Hz"


def _is_transparent(image: Image.Image) -> bool:
    """Whether a pixel of the image is not opaque."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def spectrogram_to_array(grey: UInt8, how: Preprocessing) -> UInt8:
    """Stretch a grey picture `[mels, frames]` over the whole input, as all counts: `[channels, height, width]`."""
    height, width = how.image_size
    picture = Image.fromarray(grey).resize((width, height), _RESAMPLE[how.interpolation])
    return np.repeat(np.asarray(picture, dtype=np.uint8)[None], how.channels, axis=0)


def decode_image(data: bytes, how: Preprocessing) -> UInt8:
    """Decode an image file of one of `formats.FORMATS`, of several frames the first; uint8 `[channels, height, width]`.

    Raises:
        UnsupportedMediaError: the bytes are no such image, or one that needs a package that is not installed.
        TooLargeError: the image has more than `MAX_PIXELS` pixels, or decoding it takes too much memory.
        CostlyFileError: the image has more than `MAX_SCANS` scans, or decoding it takes too long.
        ImageError: the image is truncated or damaged, its pixels are on no known scale, or there are no bytes.
    """
    return read_image(data, how).array


def read_image(data: bytes, how: Preprocessing, limits: Limits = LIMITS) -> Decoded:
    """Decode an image file as `decode_image` does, within `limits`, and remark on it."""
    image = open_image(data)
    try:
        scans = _scans(data) if image.format == "JPEG" else 1
        _check_work(image, data, scans, limits.work)
        coefficients = _coefficient_bytes(image) if scans > 1 else 0
        longer = max(how.image_size)  # for both sides: the image may lie on its side until EXIF is followed
        image.draft("RGB" if how.channels == 3 else "L", (longer, longer))
        _check_memory(image, coefficients, limits.memory_bytes)
        image.load()
        return Decoded(image_to_array(image, how), (TRANSPARENT,) if _is_transparent(image) else ())
    except ImageError:
        raise
    except MemoryError:
        raise TooLargeError("decoding the image takes too much memory: send a smaller one") from None
    except Exception:
        raise ImageError("the image is truncated or damaged: it cannot be decoded") from None


def _scans(data: bytes) -> int:
    """How many scans a JPEG file has. A scan's data cannot hold its marker, other segments hold few of them."""
    return data.count(b"\xff\xda")


def _check_work(image: Image.Image, data: bytes, scans: int, most: int) -> None:
    """Raises CostlyFileError where decoding takes more than `most` pixels times passes."""
    if scans > MAX_SCANS:
        raise CostlyFileError(f"the JPEG file has {scans:,} scans, over {MAX_SCANS}: save it as a baseline JPEG")
    passes = max(scans, _PASSES.get(image.format or "", 1))
    if data[:2] in (b"P1", b"P2", b"P3"):
        passes = _PASSES_OF_PLAIN_TEXT
    if image.width * image.height * passes > most:
        raise CostlyFileError("decoding the image takes too long: send a smaller one, or as PNG or baseline JPEG")


def _coefficient_bytes(image: Image.Image) -> int:
    """What libjpeg keeps of an image in several scans, bytes: 16 bits a sample, whatever size it is decoded at."""
    return 2 * image.width * image.height * len(image.getbands())


def _check_memory(image: Image.Image, coefficients: int, most: int) -> None:
    """Raises TooLargeError where the decoded pixels take more than `most` bytes beside the coefficients."""
    a_pixel = _BYTES_OF_MODE.get(image.mode, 4) * _TIMES_THE_MEMORY.get(image.format or "", 1)
    needed = image.width * image.height * a_pixel + coefficients
    if needed > most:
        raise TooLargeError(
            f"decoding the image of {image.width}x{image.height} pixels takes {needed / 1e6:,.0f} MB, "
            f"over {most / 1e6:,.0f} MB: send a smaller one"
        )


def open_image(data: bytes) -> Image.Image:
    """An image file with its header read and no pixel decoded. Raises as `decode_image`."""
    if not data:
        raise ImageError("the image is empty: it has no bytes")
    known = formats.readable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=known)
        except Image.DecompressionBombError:
            raise TooLargeError(f"the image has more than {MAX_PIXELS:,} pixels: send a smaller one") from None
        except Exception as error:
            if "HEIF" not in known and formats.looks_like_heif(data):
                raise UnsupportedMediaError(formats.needed_for("HEIF")) from None
            if isinstance(error, UnidentifiedImageError):
                raise UnsupportedMediaError(f"not an image file: send {', '.join(known[:-1])} or {known[-1]}") from None
            raise ImageError("the image is damaged: it cannot be decoded") from None
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(
            f"the image is {image.width}x{image.height}, over {MAX_PIXELS:,} pixels: send a smaller one"
        )
    return image
