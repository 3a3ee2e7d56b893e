"""From the body of a request to the array a sub-model takes, every size checked before it is used."""

from __future__ import annotations

import io
import math
import threading

import numpy as np

from edvit.errors import ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs.preprocess import Preprocessing, UInt8, decode_file
from edvit.runtime.source import what
from edvit.runtime.wire.messages import MAX_BATCH

NPY = "application/x-npy"
FILE = "application/octet-stream"
"""An image or sound file whose sender does not say which."""

_parsing = threading.Lock()
"""NumPy reads a header with `ast.literal_eval`, and CPython 3.11's parser, entered by two threads at once, can raise
SystemError("AST constructor recursion depth mismatch"): seen once, with twelve requests at a time."""


def read_images(data: bytes, media_type: str, how: Preprocessing) -> tuple[UInt8, bool]:
    """Decode a body that is one image or sound file, whichever `how` takes, or an array in NumPy's .npy format.

    Args:
        data: the body.
        media_type: without parameters, lower case: `image/...`, `audio/...`, `application/octet-stream`, or
            `application/x-npy`.
        how: gives the shape; an array must have it already, a file is brought to it.

    Returns:
        uint8 `[batch, channels, height, width]`, and whether the caller sent a batch rather than one image.

    Raises:
        UnsupportedMediaError: another media type, or the bytes are not of the kind that `how` takes.
        TooLargeError: the image has too many pixels, the sound too many samples, the batch too many images.
        ImageError: empty, damaged (SoundError for sounds), or of another shape or dtype; the message says which was
            expected.
    """
    if not data:
        raise ImageError(f"the body is empty: send the bytes of {how.takes} file")
    if media_type == NPY:
        array = read_npy(data, how)
        return (array, True) if array.ndim == 4 else (array[None], False)
    if media_type.startswith(("image/", "audio/")) or media_type == FILE:
        return decode_file(data, how)[None], False
    raise UnsupportedMediaError(
        f"content type {media_type or 'missing'}: send {how.takes} file (multipart field `file`, or "
        f"{how.media_type}) or {NPY}"
    )


def read_npy(data: bytes, how: Preprocessing) -> UInt8:
    """A uint8 array `[channels, height, width]` or `[batch, channels, height, width]`; no copy, and never a pickle."""
    expected = f"uint8 {list(how.shape)} or [batch, {', '.join(map(str, how.shape))}]"
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with _parsing:
            shape, fortran, dtype = read_header(stream, max_header_size=10_000)
    except (ValueError, KeyError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ImageError(f"not a .npy array: send {expected}") from None
    if dtype != np.uint8:
        raise ImageError(f"the array's dtype is {dtype}: send {expected}")
    if fortran or shape[-3:] != how.shape or len(shape) not in (3, 4):
        order = " in Fortran order" if fortran else ""
        raise ImageError(f"the array's shape is {list(shape)}{order}: send {expected}")
    if len(shape) == 4 and shape[0] == 0:
        raise ImageError(f"the array holds no {what(how)}: send {expected}")
    offset = stream.tell()
    if len(data) - offset != math.prod(shape):
        raise ImageError("the array is truncated or has bytes after its end: send what numpy.save writes")
    if len(shape) == 4 and shape[0] > MAX_BATCH:
        raise TooLargeError(f"a batch of {shape[0]:,} {what(how)}s is too large: send at most {MAX_BATCH:,} at once")
    return np.frombuffer(data, dtype=np.uint8, offset=offset).reshape(shape)


def to_npy(array: UInt8) -> bytes:
    """What `read_npy` reads."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
