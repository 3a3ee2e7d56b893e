"""Arrays that are filled in a file, too large for memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of zeros, mapped into memory for writing.

    Raises:
        OSError: the disk has no room for all of it. Without asking for the room first, the process would be killed in
            the middle of writing.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
