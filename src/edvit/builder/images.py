"""Decoded image sets: uint8 arrays on disk, mapped into memory, never copied whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edvit.builder.jobs.artifacts import Artifact
from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.jobs.filling import fill_arrays
from edvit.errors import DataError
from edvit.inputs.datasets import LabelledImages
from edvit.inputs.datasets.splits import held_out
from edvit.inputs.preprocess import Preprocessing

PIXELS = "pixels.npy"
LABELS = "labels.npy"
UNREADABLE = "unreadable.npy"


@dataclass(frozen=True)
class ImageSet:
    """Some rows of a decoded image set. Cheap to pickle: pixels stay on disk.

    Attributes:
        folder: what `write_images` wrote.
        rows: int64 `[n]`, which of its images, in this order.
    """

    folder: Path
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and which rows these are, hex; the folder has to be a finished job's."""
        of_all = Artifact.read(self.folder).digest
        return hashlib.sha256(of_all.encode() + self.rows.tobytes()).hexdigest()

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, int64 `[n]`."""
        labels: npt.NDArray[np.int64] = np.load(self.folder / LABELS)[self.rows]
        return labels

    @cached_property
    def _mapped(self) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = np.load(self.folder / PIXELS, mmap_mode="r")
        return pixels

    def pixels(self, index: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.uint8]:
        """Images `index` of this set, read into memory: uint8 `[len(index), channels, height, width]`."""
        return np.asarray(self._mapped[self.rows[index]])

    def batches(self, size: int) -> Iterator[npt.NDArray[np.uint8]]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.pixels(slice(start, start + size))

    def take(self, index: npt.NDArray[np.int64]) -> ImageSet:
        """The images at `index` of this set."""
        return ImageSet(self.folder, self.rows[index])

    def of_classes(self, classes: Sequence[int]) -> npt.NDArray[np.int64]:
        """Indices of the images that belong to one of `classes`."""
        return np.flatnonzero(np.isin(self.labels, classes))

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "rows": self.rows}


@dataclass(frozen=True)
class Written:
    """What `write_images` met.

    Attributes:
        bad: what is wrong with each image that cannot be read, in the order of `unreadable`; the text does not name it.
        remarks: how many images each remark is on.
    """

    bad: tuple[str, ...]
    remarks: Mapping[str, int]


def write_images(
    images: LabelledImages,
    how: Preprocessing,
    folder: Path,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint | None = None,
) -> Written:
    """Decode and resize every image into `folder`; of one that cannot be read, the row is left black and noted.

    `checkpoint` is as for `fill_arrays`.
    """
    labels = np.asarray(images.labels, dtype=np.int64)
    bad: dict[int, str] = {}
    remarks: dict[str, int] = {}

    def write(index: npt.NDArray[np.int64], arrays: Mapping[str, np.memmap]) -> None:
        for i in index.tolist():
            try:
                decoded = images.decoded(i, how)
            except DataError as error:
                bad[i] = str(error)
                continue
            arrays[PIXELS][i] = decoded.array
            for remark in decoded.remarks:
                remarks[remark] = remarks.get(remark, 0) + 1

    fill_arrays(
        folder,
        {PIXELS: (np.uint8, (len(labels), *how.shape))},
        len(labels),
        write,
        batch=1,
        checkpoint=checkpoint,
        notes=(bad, remarks),
        progress=progress,
    )
    np.save(folder / LABELS, labels)
    # Without the name: a copy of the data set that lies elsewhere has this result too.
    bad = {row: text.removeprefix(f"{images.name(row)}: ") for row, text in bad.items()}
    if bad:  # nothing is written otherwise: the folder's digest stays what it was
        np.save(folder / UNREADABLE, np.array(list(bad), dtype=np.int64))
    return Written(tuple(bad.values()), remarks)


def open_images(folder: Path) -> ImageSet:
    """All that `write_images` wrote, without the images that it could not read."""
    return ImageSet(folder, np.setdiff1d(np.arange(len(np.load(folder / LABELS))), unreadable(folder)))


def unreadable(folder: Path) -> npt.NDArray[np.int64]:
    """Rows of the images that `write_images` could not read, int64, sorted."""
    path = folder / UNREADABLE
    rows: npt.NDArray[np.int64] = np.load(path) if path.exists() else np.zeros(0, dtype=np.int64)
    return rows


def split_validation(
    labels: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], fraction: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices for training and for validation: `fraction` of each class, at least one image; see `held_out`.

    The draw is the same for every seed of a build: a base that one build has trained may be the `--weights` of another,
    which must not hold out what it was trained on.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    held = held_out(drawn, copies, fraction)
    return np.flatnonzero(~held), np.flatnonzero(held)
