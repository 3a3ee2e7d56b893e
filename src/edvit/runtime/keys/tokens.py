"""Bearer tokens of the HTTP API: who may do what. Only their hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from edvit.errors import ConfigError
from edvit.runtime.keys.files import PRIVATE, locked, read, write

Scope = Literal["predict", "watch", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "edvit_"
TOKEN_BYTES = 32
"""A token is drawn from 2**256: it cannot be guessed, so that a slow hash would guard no better than SHA-256 does."""

RATE = "100/second"
"""Requests that a token may make, unless said otherwise."""


@dataclass(frozen=True)
class Token:
    """A token as it is kept."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    made: str
    """ISO 8601, UTC."""


def add_token(folder: Path, name: str, scopes: Iterable[str], now: datetime) -> str:
    """Make a token, in place of an earlier one of that name.

    Returns:
        The token itself, which is kept nowhere.

    Raises:
        ConfigError: a scope is unknown, none is given, or the folder cannot be written.
    """
    wanted = set(scopes)
    unknown = sorted(wanted - set(SCOPES))
    if unknown or not wanted:
        raise ConfigError(f"{', '.join(unknown) or 'no scope'}: a token's scopes are among {', '.join(SCOPES)}")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    chosen = tuple(scope for scope in SCOPES if scope in wanted)
    with locked(folder):
        others = [known for known in tokens(folder) if known.name != name]
        _write(folder, [*others, Token(name, _hash(token), chosen, now.isoformat())])
    return token


def remove_token(folder: Path, name: str) -> None:
    """From now on it opens nothing. Raises ConfigError if there is no token of that name."""
    with locked(folder):
        known = tokens(folder)
        if all(token.name != name for token in known):
            raise ConfigError(f"{name}: no such token here; `edvit keys list` shows them")
        _write(folder, [token for token in known if token.name != name])


def tokens(folder: Path) -> tuple[Token, ...]:
    """Every token of the folder. Raises ConfigError for a damaged list."""
    path = folder / "tokens.json"
    if not path.exists():
        return ()
    try:
        values = json.loads(read(path, ""))
        known = tuple(Token(**{**value, "scopes": tuple(value["scopes"])}) for value in values)
        if not all(isinstance(token.sha256, str) and isinstance(token.name, str) for token in known):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{path}: damaged; restore it, or remove it and make every token again") from None
    return known


class TokenList:
    """The tokens of a folder as they are now: a change on disk holds from the next request on. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def find(self, token: str) -> Token | None:
        """The token that this is, or None. It takes the same time however much of it is right.

        Raises:
            ConfigError: the list is damaged or cannot be read.
        """
        given = _hash(token)
        found = None
        for known in self._current():
            if hmac.compare_digest(known.sha256.encode(), given.encode()):
                found = known
        return found

    def _current(self) -> tuple[Token, ...]:
        try:
            state = (self._folder / "tokens.json").stat()
            stamp = (state.st_mtime_ns, state.st_ino)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"{self._folder / 'tokens.json'}: cannot be read ({error.strerror})") from None
        with self._lock:
            if stamp != self._stamp:
                self._tokens = tokens(self._folder)
                self._stamp = stamp
            return self._tokens


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _write(folder: Path, known: Iterable[Token]) -> None:
    write(folder / "tokens.json", json.dumps([asdict(token) for token in known], indent=1).encode(), PRIVATE)
