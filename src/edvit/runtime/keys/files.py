"""Files of a keys folder: private ones that their owner alone may read, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edvit.errors import ConfigError

PRIVATE = 0o600
PUBLIC = 0o644


def default_folder() -> Path:
    """`$XDG_CONFIG_HOME/edvit/keys`, or `~/.config/edvit/keys`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edvit" / "keys"


def write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step; its folder is made, for its owner alone, where it is missing.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A temporary file has mode 0600 from the start, so nobody else can open it meanwhile.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            Path(name).replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --keys folder") from None


def read(path: Path, missing: str) -> bytes:
    """The bytes of a file.

    Args:
        missing: what the user can do when there is no such file.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def check_private(path: Path) -> None:
    """Raises ConfigError if somebody beside the owner may read or write a private file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: other users of this machine may read this private key; run: chmod 600 {path}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold off other processes that change this folder's lists. Raises ConfigError if there is no such folder."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be opened ({error.strerror}); run `edvit keys init` first") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
