"""What a caller in Python gives to be classified, brought to the array that a sub-model takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL.Image import Image

from edvit.errors import DataError, ImageError
from edvit.inputs.preprocess import Preprocessing, UInt8, decode_file, image_to_array

BYTES = (bytes, bytearray, memoryview)
"""What holds the bytes of a file; each of them is a sequence of numbers as well."""
File: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image"
"""The path of an image or sound file, the bytes of one, or a PIL image."""
Source: TypeAlias = "File | UInt8"
"""A file, or an array that has the model's own shape and is fed as it is."""


def to_array(source: Source, how: Preprocessing) -> UInt8:
    """One image or sound to uint8 `[channels, height, width]`.

    Files and PIL images of any size are brought to the model's, as on a gateway; an array must have its shape.

    Raises:
        DataError: the path cannot be read.
        ImageError: the file cannot be decoded (SoundError for sounds), the array has another shape or dtype, or the
            source is of another kind.
    """
    if isinstance(source, np.ndarray):
        check_array(source, how.shape, how)
        return source
    if isinstance(source, BYTES):
        return decode_file(bytes(source), how)
    if isinstance(source, str | os.PathLike):
        return _read(Path(source), how)
    if isinstance(source, Image):
        return _convert(source, how)
    raise ImageError(f"{type(source).__name__} is no {what(how)}: give {_accepted(how)}")


def check_array(array: UInt8, shape: tuple[int, ...], how: Preprocessing) -> None:
    """Raises ImageError unless an array is uint8 of this shape; the message says what `how` takes."""
    if array.dtype == np.uint8 and array.shape == shape:
        return
    size = how.shape
    last = " (array.transpose(2, 0, 1) puts channels first)" if array.shape == (*size[1:], size[0]) != size else ""
    raise ImageError(f"the array is {array.dtype} {list(array.shape)}: give {_accepted(how)}{last}")


def what(how: Preprocessing) -> str:
    """`image` or `sound`: the kind of thing that the model is asked about."""
    return how.takes.split()[-1]


def _accepted(how: Preprocessing) -> str:
    sizes = ", ".join(map(str, how.shape))
    files = "its path or its bytes" if how.spectrogram else "its path, its bytes, a PIL image"
    return f"one {what(how)} as {files} or a uint8 array [{sizes}], or a list of them, or an array [batch, {sizes}]"


def _read(path: Path, how: Preprocessing) -> UInt8:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    try:
        return decode_file(data, how)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from None


def _convert(image: Image, how: Preprocessing) -> UInt8:
    if how.spectrogram is not None:
        raise ImageError(f"the model takes sounds, not images: give {_accepted(how)}")
    try:
        return image_to_array(image, how)
    except ImageError:
        raise
    except Exception:
        # Pillow decodes an opened file when its pixels are first needed, and its decoders raise what they like.
        raise ImageError("the image is truncated or damaged: it cannot be decoded") from None
