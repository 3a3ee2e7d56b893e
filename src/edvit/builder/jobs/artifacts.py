"""The work folder: every stage's result under a digest of its inputs and settings, so that a build resumes.

A stage writes into a scratch folder that is renamed when it is whole; a killed build leaves nothing that reads as
done. A stage's key covers its settings and the *content* of what it was made from, so redoing one stage redoes
what depends on it exactly when its result has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit import __version__
from edvit.bundle import sha256_of
from edvit.errors import NO_ROOM, BuildError, ConfigError

_DONE = "done.json"
_LOCK = ".lock"
_SCRATCH = ".scratch-"


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and the digest of what is in it."""

    folder: Path
    digest: str

    def record(self) -> dict[str, Any]:
        """What the stage noted about itself."""
        note: dict[str, Any] = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))["note"]
        return note


@dataclass(frozen=True)
class Stage:
    """One thing to make: a name, and everything that its result depends on (JSON values)."""

    name: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        text = json.dumps([self.name, __version__, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


Make = Callable[[Path], "dict[str, Any] | None"]
"""Fills a folder; what it returns is noted beside the result."""


class WorkFolder:
    """Finished stages below one root.

    Args:
        root: made if it is not there.
        force: names of stages to redo even where they are done.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, root: Path, force: frozenset[str] = frozenset()) -> None:
        self.root = root
        self._force = set(force)
        self._redone: set[str] = set()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{root}: cannot be made ({type(error).__name__}); choose another --work") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one build at a time; what a killed one left half done is removed.

        Raises:
            ConfigError: another build is using the folder.
            BuildError: within the block, a disk was full.
        """
        try:
            lock = (self.root / _LOCK).open("w")
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be written ({type(error).__name__}); give another --work") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.root}: in use by another build; wait, or give another --work") from None
            for scratch in self.root.glob(f"{_SCRATCH}*"):
                self.discard(scratch)
            try:
                yield
            except Exception as error:
                if not _is_disk_full(error):
                    raise
                where = _written(error) or f"(the work folder is {self.root})"
                raise BuildError(
                    f"no space left on the disk {where}; free some and run again: what is finished is kept"
                ) from None

    def find(self, stage: Stage) -> Artifact | None:
        """The stage's result, if it is done and is not to be redone."""
        folder = self._folder(stage)
        if stage.name in self._force and stage.key not in self._redone:
            return None
        try:
            done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
            return Artifact(folder, done["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self, stage: Stage, fill: Make) -> Artifact:
        """The stage's result; `fill` is called where it is not done yet."""
        return self.find(stage) or self.remake(stage, fill)

    def forces(self, name: str) -> bool:
        """Whether stages of that name are to be redone."""
        return name in self._force

    def remake(self, stage: Stage, fill: Make) -> Artifact:
        """As `make`, also where the stage is done."""
        scratch = self.begin(stage)
        try:
            return self.commit(stage, scratch, fill(scratch))
        except BaseException:
            self.discard(scratch)
            raise

    def begin(self, stage: Stage) -> Path:
        """A scratch folder to fill for `commit`."""
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{stage.name}-", dir=self.root))

    def discard(self, scratch: Path) -> None:
        """Remove a scratch folder; nothing happens to one that was committed."""
        shutil.rmtree(scratch, ignore_errors=True)

    def commit(self, stage: Stage, scratch: Path, note: dict[str, Any] | None = None) -> Artifact:
        """Take a filled scratch folder as the stage's result."""
        digest = hashlib.sha256()
        for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(scratch)} {sha256_of(path)}\n".encode())
        artifact = Artifact(self._folder(stage), digest.hexdigest())
        done = {"stage": stage.name, "settings": stage.settings, "digest": artifact.digest, "note": note or {}}
        (scratch / _DONE).write_text(json.dumps(done, indent=1), encoding="utf-8")
        if artifact.folder.exists():
            shutil.rmtree(artifact.folder)
        scratch.chmod(0o755)
        scratch.rename(artifact.folder)
        self._redone.add(stage.key)
        return artifact

    def _folder(self, stage: Stage) -> Path:
        return self.root / f"{stage.name}-{stage.key}"


def _written(error: Exception) -> str:
    """What could not be written, where the error tells; of a copy that is the second file."""
    file = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return f"(writing {os.fsdecode(file)})" if isinstance(file, str | bytes) else ""


def _is_disk_full(error: Exception) -> bool:
    """Also a quota or the process's own limit; safetensors has an exception of its own, with the number in its text."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    return any(f"os error {number}" in str(error) for number in NO_ROOM)
