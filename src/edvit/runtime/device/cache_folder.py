"""The folder of model files on a device: which of them are in use, and which go when there is no room.

A file in use has a shared lock, which the system takes away when the process ends, however it ends. Several devices may
therefore share a folder. Whoever looks for, adds or removes files holds a lock on the folder meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from edvit.errors import ConfigError, ServiceError

CACHE_LIMIT_MB = 2000
"""The limit of a device's cache unless another is given, 10^6 bytes: the models of many bundles, on a small card."""

MODEL = re.compile(r"[0-9a-f]{64}\.onnx")
PART = re.compile(r"\.[0-9a-f]{16}-\w+\.part")
"""Files with other names are left alone, and do not count."""


class HeldFile:
    """A model file in use: nobody removes it to make room before `release`, or before this object is gone.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, _release, handle)

    def release(self) -> None:
        """Use it no more. Calling it twice is fine."""
        self._finalizer()


class NewFile:
    """A model file that is being written; see `CacheFolder.adding`."""

    def __init__(self, folder: CacheFolder, part: Path, handle: int) -> None:
        self._folder = folder
        self.part = part
        self._handle = handle

    def write(self, data: bytes) -> None:
        """Append. Raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def keep(self, sha256: str) -> HeldFile:
        """The file is complete: it gets its name, and is in use from now on. Raises OSError."""
        os.fsync(self._handle)
        return self._folder.name(self.part, sha256, os.dup(self._handle))


class CacheFolder:
    """A folder of model files, each named by its digest, within a limit of bytes. Thread-safe.

    Args:
        folder: it is made where it is missing. What a killed process has left half written is removed.
        limit_bytes: for all files together; those that were used least recently go first. None for no limit.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._remove_half_written()
                self._evict(0)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot make this folder ({error.strerror}); choose another --cache") from None

    def hold(self, sha256: str) -> HeldFile | None:
        """The file with that name, in use from now on; None if there is none. What is in it is not checked.

        Raises:
            OSError: it cannot be read.
        """
        path = self._path(sha256)
        with self._locked():
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            fcntl.flock(handle, fcntl.LOCK_SH)
        self.touch([sha256])
        return HeldFile(path, handle)

    def touch(self, digests: Iterable[str]) -> None:
        """Count files as used just now: others go before them."""
        for sha256 in digests:
            with contextlib.suppress(OSError):
                os.utime(self._path(sha256))

    @contextlib.contextmanager
    def adding(self, sha256: str, size: int) -> Iterator[NewFile]:
        """A new file, to be written in the block. It is thrown away unless its `keep` is called.

        Args:
            sha256: the digest that it shall have.
            size: the bytes that it will have; room is made for them first.

        Raises:
            ServiceError: there is no room for it within the limit.
            OSError: it cannot be written.
        """
        with self._locked():
            self._remove_half_written()
            self._make_room(size)
            handle, name = tempfile.mkstemp(prefix=f".{sha256[:16]}-", suffix=".part", dir=self._folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            os.ftruncate(handle, size)  # it counts in full from the start, for other processes too
            yield NewFile(self, Path(name), handle)
        finally:
            os.close(handle)
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()

    def name(self, part: Path, sha256: str, handle: int) -> HeldFile:
        """Give a complete file its name; `handle` is an open one of it, which the result owns. Raises OSError."""
        path = self._path(sha256)
        held = HeldFile(path, handle)
        with self._locked():
            fcntl.flock(handle, fcntl.LOCK_SH)
            part.replace(path)
        return held

    # --- making room, with the folder locked ---------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        """Remove what is not in use until a file of `size` bytes fits. Raises ServiceError if it cannot."""
        limit = self._limit_bytes
        if limit is None:
            return
        if size > limit:
            raise ServiceError(
                f"a model file of {_mb(size)} is larger than the limit of the cache, {_mb(limit)}; start the device "
                "with a larger --cache-limit"
            )
        left = self._evict(size)
        if left + size > limit:
            raise ServiceError(
                f"a model file of {_mb(size)} finds no room in the cache: {_mb(left)} of {_mb(limit)} are in use; "
                "start the device with a larger --cache-limit"
            )

    def _evict(self, size: int) -> int:
        """Remove files not in use, least recently used first, while the others and `size` exceed the limit.

        Returns:
            The bytes of the files that are left.
        """
        files = sorted(self._files(), key=lambda entry: entry.stat().st_mtime_ns)
        left = sum(entry.stat().st_size for entry in files)
        if self._limit_bytes is None:
            return left
        for entry in files:
            if left + size <= self._limit_bytes:
                break
            bytes_ = entry.stat().st_size
            if MODEL.fullmatch(entry.name) and _remove_unless_used(entry.path):
                left -= bytes_
        return left

    def _remove_half_written(self) -> None:
        """A file that is being written is locked: one that is not is of a process that was killed."""
        for entry in self._files():
            if PART.fullmatch(entry.name):
                _remove_unless_used(entry.path)

    def _files(self) -> list[os.DirEntry[str]]:
        with os.scandir(self._folder) as entries:
            return [
                entry
                for entry in entries
                if (MODEL.fullmatch(entry.name) or PART.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
            ]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.onnx"


def _remove_unless_used(path: str) -> bool:
    """Whether the file is gone now."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(path).unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _release(handle: int) -> None:
    with contextlib.suppress(OSError):
        os.utime(handle)  # it has been in use until now
    os.close(handle)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
