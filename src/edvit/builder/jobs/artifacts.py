"""The work folder: every job's result under the job's key, so that a build resumes.

A job fills a scratch folder that is renamed when it is whole; a killed build leaves nothing that reads as done. A job
that takes minutes keeps a checkpoint in a folder of its own until its result is there. A key covers the *content* of
what a job reads, so redoing one job redoes what depends on it exactly when its result has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edvit.builder.jobs.checkpoint import EVERY_S, Checkpoint
from edvit.builder.jobs.job import Job, Note, Resumable
from edvit.builder.jobs.parallel import Progress
from edvit.digest import sha256_of
from edvit.errors import NO_ROOM, BuildError, ConfigError, EdvitError

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "timm", "torch", "torchvision")
"""Distributions whose versions are recorded beside each result."""

_DONE = "done.json"
_LOCK = ".lock"
_SCRATCH = ".scratch-"
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Artifact:
    """A finished job's result: its folder and the digest of what is in it."""

    folder: Path
    digest: str

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """The result that a folder holds. Raises OSError, ValueError, KeyError or TypeError where it holds none."""
        return cls(folder, json.loads((folder / _DONE).read_text(encoding="utf-8"))["digest"])

    @property
    def note(self) -> Note:
        """What the job wrote down about its result."""
        note: Note = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))["note"]
        return note


class WorkFolder:
    """Finished jobs below one root.

    Args:
        root: made if it is not there.
        force: names of stages whose jobs are run again even where they are done.
        checkpoint_s: seconds between two checkpoints of a job.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, root: Path, force: frozenset[str] = frozenset(), *, checkpoint_s: float = EVERY_S) -> None:
        self.root = root
        self._checkpoint_s = checkpoint_s
        self._force = set(force)
        self._redone: set[str] = set()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{root}: cannot be made ({type(error).__name__}); choose another --work") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one build at a time; what a killed one left half done is removed.

        Checkpoints of a killed one stay. They are removed when the block ends well: what is left then belongs to other
        settings.

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
                for unfinished in self.root.glob(f"{_UNFINISHED}*"):
                    self.discard(unfinished)
            except Exception as error:
                if not _is_disk_full(error):
                    raise
                where = _written(error) or f"(the work folder is {self.root})"
                raise BuildError(
                    f"no space left on the disk {where}; free some and run again: what is finished is kept"
                ) from None

    def capacity(self) -> int:
        """Bytes that there are for the folder: what its disk has free, and what it holds already."""
        held = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        return held + shutil.disk_usage(self.root).free

    def settled(self, name: str, value: int) -> int:
        """The number of that name that the folder's first build settled; `value` where this is the first.

        A resumed build then does not decide otherwise than the killed one because the disk is fuller by now.
        """
        path = self.root / f"{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if isinstance(found, int):
            return found
        path.write_text(json.dumps(value), encoding="utf-8")
        return value

    def find(self, job: Job) -> Artifact | None:
        """The job's result, if it is done and is not to be redone."""
        if self._is_forced(job):
            return None
        try:
            return Artifact.read(self._folder(job))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def forces(self, stage: str) -> bool:
        """Whether the jobs of a stage are to be redone."""
        return stage in self._force

    def make(self, job: Job, progress: Progress) -> Artifact:
        """Run a job in this process and keep its result, also where it is done."""
        scratch = self.begin(job)
        try:
            return self.run(job, scratch, progress)
        except BaseException:
            self.discard(scratch)
            raise

    def run(self, job: Job, scratch: Path, progress: Progress) -> Artifact:
        """Run a job into an empty scratch folder, from its checkpoint where there is one, and keep its result."""
        if not isinstance(job, Resumable):
            return self.commit(job, scratch, job.run(scratch, progress))
        unfinished = self._unfinished(job)
        if self._is_forced(job):
            self.discard(unfinished)
        with _held(unfinished) as mine:
            checkpoint = Checkpoint(unfinished, job.key, every_s=self._checkpoint_s) if mine else None
            try:
                artifact = self.commit(job, scratch, job.run_from(checkpoint, scratch, progress))
            except EdvitError:  # the next attempt would end the same way
                self.discard(unfinished)
                raise
            if mine:
                self.discard(unfinished)
            return artifact

    def steps_done(self, job: Job) -> tuple[int, int] | None:
        """Steps done and steps in all of a job that a killed build has begun; None where it begins anew."""
        if not isinstance(job, Resumable) or self._is_forced(job):
            return None
        return Checkpoint.steps(self._unfinished(job))

    def begin(self, job: Job) -> Path:
        """A scratch folder to fill for `commit`."""
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{job.STAGE}-", dir=self.root))

    def discard(self, scratch: Path) -> None:
        """Remove a scratch folder; nothing happens to one that was committed."""
        shutil.rmtree(scratch, ignore_errors=True)

    def commit(self, job: Job, scratch: Path, note: Note) -> Artifact:
        """Take a filled scratch folder as the job's result."""
        digest = hashlib.sha256()
        for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(scratch)} {sha256_of(path)}\n".encode())
        artifact = Artifact(self._folder(job), digest.hexdigest())
        done = {
            "inputs": job.inputs(),
            "digest": artifact.digest,
            "note": note,
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        (scratch / _DONE).write_text(json.dumps(done, indent=1), encoding="utf-8")
        if artifact.folder.exists():
            shutil.rmtree(artifact.folder)
        scratch.chmod(0o755)
        scratch.rename(artifact.folder)
        self._redone.add(job.key)
        return artifact

    def _is_forced(self, job: Job) -> bool:
        return job.STAGE in self._force and job.key not in self._redone

    def _folder(self, job: Job) -> Path:
        return self.root / f"{job.STAGE}-{job.key}"

    def _unfinished(self, job: Job) -> Path:
        return self.root / f"{_UNFINISHED}{job.STAGE}-{job.key}"


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether a folder, made here, is this process's alone within the block.

    It is not where a job is run again on a Ray cluster while its first attempt lives on.
    """
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _written(error: Exception) -> str:
    """What could not be written, where the error tells; of a copy that is the second file."""
    file = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return f"(writing {os.fsdecode(file)})" if isinstance(file, str | bytes) else ""


def _is_disk_full(error: Exception) -> bool:
    """Also a quota or the process's own limit; safetensors has an exception of its own, with the number in its text."""
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    return any(f"os error {number}" in str(error) for number in NO_ROOM)
