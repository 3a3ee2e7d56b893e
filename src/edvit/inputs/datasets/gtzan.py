"""GTZAN: `genres/<genre>/<genre>.00000.wav`, ten genres of 100 clips of 30 seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.images import FileSounds, Split, shorten
from edvit.inputs.datasets.splits import fixed_split

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
CLIPS = 100
FAULTY = frozenset(("jazz.00054",))
"""In the copy that most people have, this file is damaged: it is skipped, and counts for no split."""
FOLDERS = ("genres", "genres_original", "Data/genres_original", "gtzan/genres", ".")
"""Where archives and torchaudio put the genres."""


def read_gtzan(split: Split, data_root: Path | None) -> FileSounds:
    """GTZAN from `data_root/genres`, or another of `FOLDERS`, as WAV or AU.

    Raises:
        DataError: clips are missing; the message names them.
    """
    if data_root is None:
        raise DataError("gtzan needs --data-root: the folder that holds genres")
    folder = next(
        (data_root / name for name in FOLDERS if (data_root / name / GENRES[0]).is_dir()), data_root / "genres"
    )
    paths, labels, missing, skipped = [], [], [], []
    for label, genre in enumerate(GENRES):
        for number in range(CLIPS):
            clip = f"{genre}.{number:05}"
            path = _find(folder / genre, clip)
            if clip in FAULTY:
                skipped += [clip] if path else []
            elif path is None:
                missing.append(clip)
            else:
                paths.append(path)
                labels.append(label)
    if missing:
        raise DataError(f"{folder}: missing {shorten(missing)} (.wav or .au); unpack the whole archive there")
    every = np.array(labels, dtype=np.int64)
    notes = tuple(f"skipped {clip}: known to be damaged" for clip in skipped)
    sounds = FileSounds(classes=GENRES, labels=every, paths=tuple(paths), root=folder, notes=notes)
    return sounds.take(fixed_split([path.stem for path in paths], every, sounds.copies, split))


def _find(folder: Path, clip: str) -> Path | None:
    return next((path for path in (folder / f"{clip}.wav", folder / f"{clip}.au") if path.is_file()), None)
