"""Speech Commands (arXiv 1804.03209): `<word>/<speaker>_nohash_<n>.wav`, and two lists that split it by speaker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edvit.errors import DataError
from edvit.inputs.datasets.images import FileSounds, Split, shorten
from edvit.inputs.datasets.tree import files_under

VALIDATION = "validation_list.txt"
TEST = "testing_list.txt"
FOLDERS = ("SpeechCommands/speech_commands_v0.02", "speech_commands_v0.02", ".")
"""Where torchaudio and people put it."""


def read_speech_commands(split: Split, data_root: Path | None) -> FileSounds:
    """Speech Commands from `data_root/speech_commands_v0.02`, or another of `FOLDERS`; every word is a class.

    Training clips are those that neither list names, and those of the validation list, which are marked as such.
    Folders that begin with an underscore (background noise) are no words.

    Raises:
        DataError: a list is missing, or clips that a list names; the message says which.
    """
    if data_root is None:
        raise DataError("speech-commands needs --data-root: the folder that holds speech_commands_v0.02")
    known = (data_root / name for name in FOLDERS)
    folder = next((path for path in known if (path / TEST).is_file() or (path / VALIDATION).is_file()), None)
    if folder is None:
        raise DataError(f"{data_root / FOLDERS[1]}: missing {TEST} and {VALIDATION}; unpack the whole archive there")
    test, validation = _listed(folder, TEST), _listed(folder, VALIDATION)
    clips = {f"{path.parent.name}/{path.name}": path for path in files_under(folder, frozenset((".wav",)))}
    clips = {name: path for name, path in clips.items() if not name.startswith("_")}
    missing = sorted((test | validation) - clips.keys())
    if missing:
        raise DataError(f"{folder}: missing {shorten(missing)}, which its lists name; unpack the whole archive there")
    classes = tuple(sorted({name.partition("/")[0] for name in clips}))
    chosen = [name for name in clips if (name in test) == (split == "test")]
    return FileSounds(
        classes=classes,
        labels=np.array([classes.index(name.partition("/")[0]) for name in chosen], dtype=np.int64),
        paths=tuple(clips[name] for name in chosen),
        root=folder,
        validation=None if split == "test" else np.flatnonzero([name in validation for name in chosen]),
    )


def _listed(folder: Path, name: str) -> set[str]:
    try:
        return set((folder / name).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / name}: cannot be read ({type(error).__name__}); unpack the archive again") from None
