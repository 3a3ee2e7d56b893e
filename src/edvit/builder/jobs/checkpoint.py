"""Checkpoints: the state of a job that is not finished, from which a killed build goes on."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]
"""Tensors, numbers, texts, and lists, tuples and dictionaries of these."""

EVERY_S = 120.0
"""Seconds between two checkpoints."""
_STATE = "state.pt"
_DONE, _KEY, _TOTAL = "done", "key", "total"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


class Checkpoint:
    """The newest state of one job, in one file that is replaced as a whole.

    Args:
        folder: holds the file; a job may keep there what it fills, too.
        key: the job's; a state under another one is not read.
        every_s: seconds between two checkpoints; with 0 there is one after every step.
        clock: seconds that pass.
    """

    def __init__(
        self, folder: Path, key: str, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = folder
        self._key, self._every_s, self._clock = key, every_s, clock
        self._saved = clock()

    @classmethod
    def part_of(cls, whole: Checkpoint | None, name: str) -> Checkpoint | None:
        """The checkpoint of one part of a job, in a folder within that of the job; None where the job has none."""
        if whole is None:
            return None
        folder = whole.folder / name
        folder.mkdir(exist_ok=True)
        return cls(folder, whole._key, every_s=whole._every_s, clock=whole._clock)

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._clock() - self._saved >= self._every_s

    def save(self, state: State, done: int, total: int) -> None:
        """Replace the checkpoint.

        Args:
            state: what `load` is to give back.
            done: steps done.
            total: steps in all.

        Raises:
            OSError: the disk is full.
        """
        path = self.folder / _STATE
        new = path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                torch.save({**state, _KEY: self._key, _DONE: done, _TOTAL: total}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            raise _of_file(error) from None
        new.replace(path)
        self._saved = self._clock()

    def load(self) -> State | None:
        """The state; None where there is none, or it is damaged or another job's."""
        path = self.folder / _STATE
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load itself compares no checksums
                if archive.testzip() is not None:
                    return None
            state: State = torch.load(path, map_location="cpu", weights_only=True)
            return state if state[_KEY] == self._key else None
        except _DAMAGE:
            return None

    @staticmethod
    def steps(folder: Path) -> tuple[int, int] | None:
        """Steps done and steps in all of the checkpoint in a folder; its tensors are not read."""
        try:
            state: State = torch.load(folder / _STATE, map_location="cpu", weights_only=True, mmap=True)
            return state[_DONE], state[_TOTAL]
        except _DAMAGE:
            return None


def _of_file(error: BaseException) -> BaseException:
    """The error of the file behind one of torch's, whose writer raises a RuntimeError of its own; else the error."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__context__
    return error if behind is None else behind
