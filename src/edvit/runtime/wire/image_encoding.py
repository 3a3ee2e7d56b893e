"""How images cross the network: as raw bytes, losslessly as WebP, or as JPEG. Pillow does the work.

Every device gets every image, so that on a slow link the images are most of the latency. WebP at its quickest setting
keeps every bit; JPEG is smaller still, quicker, and changes pixels a little.

An encoded batch is, for each image, its length in bytes (4 bytes, little-endian) and a file of that format.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from edvit.errors import ConfigError, ServiceError, WireError
from edvit.runtime.prediction import UInt8

ImageEncoding = Literal["raw", "webp", "jpeg"]
ENCODINGS: tuple[ImageEncoding, ...] = get_args(ImageEncoding)

_SAVE: dict[ImageEncoding, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_CODEC: dict[ImageEncoding, str] = {"webp": "webp", "jpeg": "jpg"}
_LENGTH = struct.Struct("<I")


def check_encoding(encoding: ImageEncoding) -> None:
    """Raises ConfigError for an unknown encoding, or one that this machine's Pillow was built without."""
    if encoding not in ENCODINGS:
        raise ConfigError(f"unknown image encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
    if not _can(encoding):
        raise ConfigError(f"Pillow on this machine was built without {encoding}: choose another image encoding")


def encode_images(images: UInt8, encoding: ImageEncoding) -> bytes:
    """uint8 `[batch, channels, height, width]`, 1 or 3 channels, to the payload of a message."""
    if encoding == "raw":
        return images.tobytes()
    files = (_encode(image, encoding) for image in images)
    return b"".join(_LENGTH.pack(len(file)) + file for file in files)


def decode_images(payload: bytes, shape: tuple[int, ...], encoding: ImageEncoding) -> UInt8:
    """The payload of `encode_images` to uint8 of that shape `[batch, channels, height, width]`; may be read-only.

    Raises:
        WireError: there are more or fewer images, or one is of another encoding, size or colour, or damaged.
        ServiceError: Pillow here was built without that encoding.
    """
    if encoding == "raw":
        return np.frombuffer(payload, np.uint8).reshape(shape)
    if not _can(encoding):
        raise ServiceError(f"Pillow on the device was built without {encoding}: serve with another --image-encoding")
    files = list(_files(payload))
    if len(files) != shape[0]:
        raise WireError(f"the payload has {len(files)} images where its header says {shape[0]}")
    return np.stack([_decode(file, shape[1:], encoding) for file in files])


def _can(encoding: ImageEncoding) -> bool:
    if encoding == "raw":
        return True
    from PIL import features

    return bool(features.check(_CODEC[encoding]))


def _files(payload: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(payload):
        if start + _LENGTH.size > len(payload):
            raise WireError("the payload ends within an image")
        (length,) = _LENGTH.unpack_from(payload, start)
        start += _LENGTH.size
        if start + length > len(payload):
            raise WireError("the payload ends within an image")
        yield payload[start : start + length]
        start += length


def _encode(image: UInt8, encoding: ImageEncoding) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.save(stream, **_SAVE[encoding])
    return stream.getvalue()


def _decode(file: bytes, shape: tuple[int, ...], encoding: ImageEncoding) -> UInt8:
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(file), formats=[_SAVE[encoding]["format"]]) as picture:
            if picture.size != (width, height):  # known before a pixel is decoded
                raise WireError(
                    f"an image has {picture.width}x{picture.height} pixels where its header says {width}x{height}"
                )
            pixels: UInt8 = np.atleast_3d(np.asarray(picture))
    except WireError:
        raise
    except Exception:
        # Pillow's exceptions have no common class.
        raise WireError(f"an image is damaged, or is not {encoding}") from None
    if channels == 1:
        pixels = pixels[:, :, :1]  # WebP has no grey, but three equal channels
    if pixels.shape != (height, width, channels):
        raise WireError("an image has other colour channels than its header says")
    image: UInt8 = pixels.transpose(2, 0, 1)
    return image
