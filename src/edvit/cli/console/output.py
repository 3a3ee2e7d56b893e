"""Standard output and error of what runs for months: a full disk or a reader that is gone does not end it."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, TextIO


class _Lossy(io.RawIOBase):
    """Writes to a file, and drops what it does not take."""

    def __init__(self, file: int) -> None:
        self._file = io.FileIO(file, "wb", closefd=False)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        with contextlib.suppress(OSError):
            while left:
                left = left[self._file.write(left) or 0 :]
        return len(data)


def lose_what_cannot_be_written() -> None:
    """From now on a line that standard output or error does not take is lost, and the others are written at once."""
    sys.stdout, sys.stderr = _lossy(sys.stdout), _lossy(sys.stderr)


def _lossy(stream: TextIO | None) -> TextIO | None:
    try:
        file = stream.fileno() if stream is not None else None
    except io.UnsupportedOperation:
        file = None
    if stream is None or file is None:  # there is none, or it is in memory
        return stream
    stream.flush()
    raw: io.RawIOBase = _Lossy(file)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)
