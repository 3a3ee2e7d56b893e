"""The files of a folder: which are read, which count for nothing, and which are skipped and why."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edvit.errors import DataError
from edvit.units import counted

_CLUTTER = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found", "icon\r")
)
_BROKEN, _SPECIAL, _BARE, _AGAIN = "broken link", "special file", "bare file", "link back"
_OF_MANY = {
    _BARE: ("file", " without an extension"),
    _AGAIN: ("link", " to a folder that is read already"),
}
"""What stands before and after the `s` of the plural, where that is not at the end."""


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
    noun, rest = _OF_MANY.get(kind, (kind, ""))
    return counted(count, noun) + rest


class Places:
    """The real folders that are read, so that no link leads to one of them a second time.

    Args:
        folders: all that are read without following a link.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._real = [_real(folder) for folder in folders]

    def take(self, link: Path) -> bool:
        """Whether a link may be followed: its folder is none of those, lies in none and holds none. It is one then."""
        real = _real(link)
        if any(real.startswith(other) or other.startswith(real) for other in self._real):
            return False
        self._real.append(real)
        return True


def overlap(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """Two folders that are the same on the disk, or one of which lies in the other; None: there are no such two."""
    ordered = sorted((_real(folder), folder) for folder in folders)
    # What begins with a path stands right behind it in this order.
    return next(((a, b) for (outer, a), (inner, b) in pairwise(ordered) if inner.startswith(outer)), None)


def _real(folder: Path) -> str:
    """The path without links, ending in a separator, so that it begins those of the folders in it and no others."""
    return f"{os.path.realpath(folder).rstrip(os.sep)}{os.sep}"


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


def look(folder: Path, extensions: frozenset[str], places: Places | None = None) -> tuple[list[Path], Skipped]:
    """Files of those kinds at any depth, sorted, and what is skipped.

    Links to folders are followed, but not to a folder that is read already: that is skipped and counted.

    Args:
        folder: where to look.
        extensions: of the files that are wanted, lower case.
        places: what else is read; by default `folder` alone is.

    Raises:
        DataError: a folder cannot be read, or the name of a file that is read is no text.
    """
    found: list[Path] = []
    skipped = Skipped()
    for path, again in _walk(folder, places or Places([folder])):
        kind = _AGAIN if again else why_skipped(path, extensions)
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


def _walk(folder: Path, places: Places) -> Iterator[tuple[Path, bool]]:
    """Files, and links to folders that are read already; whether it is such a link."""

    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), error)

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        again = [name for name in folders if (here / name).is_symlink() and not places.take(here / name)]
        folders[:] = [name for name in folders if name not in again]
        yield from ((here / name, True) for name in again)
        yield from ((here / name, False) for name in names if not is_clutter(name))


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot be read ({type(error).__name__}); make it readable or remove it")
