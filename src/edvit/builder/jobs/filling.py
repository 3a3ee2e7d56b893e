"""Arrays that a job fills row by row in files, and goes on filling where a killed process was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edvit.builder.arrays import create_array
from edvit.builder.jobs.checkpoint import Checkpoint

Layout = tuple[npt.DTypeLike, tuple[int, ...]]
"""Type and shape of an array."""
_ROWS, _NOTES = "rows", "notes"


def fill_arrays(
    folder: Path,
    arrays: Mapping[str, Layout],
    rows: int,
    write: Callable[[npt.NDArray[np.int64], Mapping[str, np.memmap]], None],
    *,
    batch: int,
    checkpoint: Checkpoint | None = None,
    notes: Sequence[dict[Any, Any]] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill .npy files in a folder, batch after batch.

    Args:
        folder: where the files are in the end; on the disk of the checkpoint.
        arrays: file name -> type and shape, of which the first axis is often, but need not be, the rows.
        rows: how many there are.
        write: fills the rows of a batch, int64 `[batch]`, ascending, into the arrays.
        batch: rows at a time.
        checkpoint: how many rows are done. The arrays lie beside it until its job is done, so that nothing is lost
            where the process is killed while the result is kept.
        notes: what `write` writes down, numbers and texts; they are filled from the checkpoint.
        progress: called with rows done and rows in all.

    Raises:
        OSError: the disk is full.
    """
    filled = folder if checkpoint is None else checkpoint.folder
    state = None if checkpoint is None else checkpoint.load()
    begun = None if state is None else _reopen(filled, arrays)
    opened = begun or {name: create_array(filled / name, dtype, shape) for name, (dtype, shape) in arrays.items()}
    first = 0
    if begun is not None and state is not None:
        first = state[_ROWS]
        for note, found in zip(notes, state[_NOTES], strict=True):
            note.update(found)
        progress(first, rows)
    for start in range(first, rows, batch):
        done = min(start + batch, rows)
        write(np.arange(start, done), opened)
        progress(done, rows)
        if checkpoint is not None and (checkpoint.due or done == rows):
            for array in opened.values():
                array.flush()
            checkpoint.save({_ROWS: done, _NOTES: list(notes)}, done, rows)
    for name, array in opened.items():
        array.flush()
        if filled != folder:
            _give(filled / name, folder / name)


def _give(path: Path, other: Path) -> None:
    """The same file under another name as well; a copy of it where the file system knows no such thing."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _reopen(folder: Path, arrays: Mapping[str, Layout]) -> dict[str, np.memmap] | None:
    """The arrays that a killed process was filling; None where one is not there as it should be."""
    opened = {}
    for name, (dtype, shape) in arrays.items():
        try:
            array = np.lib.format.open_memmap(folder / name, mode="r+")
        except (OSError, ValueError):
            return None
        if array.dtype != dtype or array.shape != shape:
            return None
        opened[name] = array
    return opened
