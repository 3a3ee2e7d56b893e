"""The files of a folder: which are read, which count for nothing, and which are skipped and why."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edvit.errors import DataError
from edvit.units import counted

_CLUTTER = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found", "icon\r")
)
_BROKEN, _SPECIAL, _BARE = "broken link", "special file", "file without an extension"


@dataclass(frozen=True)
class Skipped:
    """Files that are not read.

    Attributes:
        files: all of the place, read or not, but no clutter.
        kinds: how many are skipped, by extension in lower case, or by what is wrong with them.
    """

    files: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """`6 .mov, 3 broken links`, the commonest first."""
        most = sorted(self.kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = [f"{count:,} {kind}" if kind.startswith(".") else _counted(count, kind) for kind, count in most[:5]]
        rest = sum(count for _, count in most[5:])
        return ", ".join([*shown, f"{rest:,} of other kinds"] if rest else shown)

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(self.files + other.files, self.kinds + other.kinds)


def _counted(count: int, kind: str) -> str:
    return counted(count, kind, "s") if kind != _BARE else counted(count, "file") + " without an extension"


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that a system or a program leaves behind: it counts for nothing."""
    return name.startswith(".") or name.lower() in _CLUTTER


def text_name(path: Path) -> str:
    """The composed form (NFC) of a file's or folder's name, so that the same word is the same class on every system.

    Raises:
        DataError: the name, or that of a folder on the way, is no text.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name is not valid UTF-8; rename it") from None
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in str(path)):
        raise DataError(f"{str(path)!r}: the name has a line break or another control character; rename it")
    return unicodedata.normalize("NFC", path.name)


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files that lie right in a folder, without clutter, sorted. Raises DataError."""
    try:
        found = sorted(path for path in folder.iterdir() if not is_clutter(path.name))
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [path for path in found if path.is_dir()], [path for path in found if not path.is_dir()]


def look(folder: Path, extensions: frozenset[str]) -> tuple[list[Path], Skipped]:
    """Files of those kinds at any depth, sorted, and what is skipped.

    Links to folders are followed, each folder once.

    Raises:
        DataError: a folder cannot be read, or the name of a file that is read is no text.
    """
    found: list[Path] = []
    skipped = Skipped()
    for path in _walk(folder):
        kind = why_skipped(path, extensions)
        if kind is None:
            text_name(path)
            found.append(path)
        else:
            skipped.kinds[kind] += 1
    return sorted(found), Skipped(len(found) + skipped.kinds.total(), skipped.kinds)


def files_under(folder: Path, extensions: frozenset[str]) -> list[Path]:
    """Files of those kinds at any depth, sorted; see `look`."""
    return look(folder, extensions)[0]


def why_skipped(path: Path, extensions: frozenset[str]) -> str | None:
    """The kind of a file that is not read; None: it is read."""
    if path.is_symlink() and not path.exists():
        return _BROKEN
    if not path.is_file():
        return _SPECIAL
    extension = os.fsencode(path.suffix.lower()).decode("utf-8", "backslashreplace")
    return None if extension in extensions else extension or _BARE


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error)

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here, real = Path(place), os.path.realpath(place)
        if real in seen:  # a link to what was read already, perhaps to a folder around it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_clutter(name)]
        links = {name for name in folders if (here / name).is_symlink()}
        folders[:] = [*sorted(set(folders) - links), *sorted(links)]  # a real folder gives its files their names
        yield from (here / name for name in names if not is_clutter(name))


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot be read ({type(error).__name__}); make it readable or remove it")
