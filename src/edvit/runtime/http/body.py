"""From the body of a request to the array a sub-model takes, every size checked before it is used."""

from __future__ import annotations

import io
import math
import re

import numpy as np

from edvit.errors import ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs.preprocess import Preprocessing, UInt8
from edvit.runtime.source import what
from edvit.runtime.wire.messages import MAX_BATCH

NPY = "application/x-npy"
FILE = "application/octet-stream"
"""An image or sound file whose sender does not say which."""
BUNDLE = "application/x-edvit-bundle"
"""A bundle, as `edvit deploy` sends it."""

_HEADER_BYTES = 1024
"""The header of an array has so many bytes at most; NumPy writes 118."""
_HEADER = re.compile(
    rb"\{(?=.*'descr':\s*'(?P<dtype>[<>|=]?[?bBiufcO][0-9]{0,2})')(?=.*'fortran_order':\s*(?P<fortran>True|False)\b)"
    rb".*'shape':\s*\((?P<shape>[-\d, ]{0,200})\).*\}\s*",
    re.DOTALL,
)
"""What an array's header says. NumPy's reader gives it to Python's parser, which fails in many ways on hostile ones."""


def read_array(data: bytes, media_type: str, how: Preprocessing) -> tuple[UInt8, bool] | None:
    """The array that a body holds in NumPy's .npy format; None where the body is an image or sound file.

    Args:
        data: the body.
        media_type: without parameters, lower case: `image/...`, `audio/...`, `application/octet-stream`, or
            `application/x-npy`.
        how: gives the shape, which an array must have.

    Returns:
        uint8 `[batch, channels, height, width]`, and whether the caller sent a batch rather than one image.

    Raises:
        UnsupportedMediaError: another media type.
        TooLargeError: the batch has too many images.
        ImageError: the body is empty, or the array is damaged or of another shape or dtype; the message says which was
            expected.
    """
    if not data:
        raise ImageError(f"the body is empty: send the bytes of {how.takes} file")
    if media_type == NPY:
        array = read_npy(data, how)
        return (array, True) if array.ndim == 4 else (array[None], False)
    if media_type.startswith(("image/", "audio/")) or media_type == FILE:
        return None
    raise UnsupportedMediaError(
        f"content type {media_type or 'missing'}: send {how.takes} file (multipart field `file`, or "
        f"{how.media_type}) or {NPY}"
    )


def read_npy(data: bytes, how: Preprocessing) -> UInt8:
    """A uint8 array `[channels, height, width]` or `[batch, channels, height, width]`; no copy, and never a pickle."""
    expected = f"uint8 {list(how.shape)} or [batch, {', '.join(map(str, how.shape))}]"
    magic, length = data[:8], {1: 2, 2: 4}.get(data[6] if len(data) > 6 else 0, 0)
    start = 8 + length
    end = start + int.from_bytes(data[8:start], "little")
    said = _HEADER.fullmatch(data[start:end]) if end - start <= _HEADER_BYTES else None
    if not magic.startswith(np.lib.format.MAGIC_PREFIX) or not length or not said:
        raise ImageError(f"not a .npy array: send {expected}")
    try:
        dtype = np.dtype(said["dtype"].decode())
        shape = tuple(int(size) for size in said["shape"].decode().removesuffix(",").split(",") if size.strip())
    except (TypeError, ValueError):
        raise ImageError(f"not a .npy array: send {expected}") from None
    fortran = said["fortran"] == b"True"
    if dtype != np.uint8:
        raise ImageError(f"the array's dtype is {dtype}: send {expected}")
    if fortran or shape[-3:] != how.shape or len(shape) not in (3, 4) or min(shape) < 0:
        order = " in Fortran order" if fortran else ""
        raise ImageError(f"the array's shape is {list(shape)}{order}: send {expected}")
    if len(shape) == 4 and shape[0] == 0:
        raise ImageError(f"the array holds no {what(how)}: send {expected}")
    if len(data) - end != math.prod(shape):
        raise ImageError("the array is truncated or has bytes after its end: send what numpy.save writes")
    if len(shape) == 4 and shape[0] > MAX_BATCH:
        raise TooLargeError(f"a batch of {shape[0]:,} {what(how)}s is too large: send at most {MAX_BATCH:,} at once")
    return np.frombuffer(data, dtype=np.uint8, offset=end).reshape(shape)


def to_npy(array: UInt8) -> bytes:
    """What `read_npy` reads."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
