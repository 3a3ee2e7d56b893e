"""One split of a data set: labels in memory, images (or sounds, whose spectrograms are images) by index."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from edvit.errors import DataError, ImageError, MissingExtraError
from edvit.inputs import formats
from edvit.inputs.audio import check_installed, duration_and_rate
from edvit.inputs.preprocess import Decoded, Preprocessing, UInt8, image_to_array, open_image, read_file

Split = Literal["train", "test"]
Labels = npt.NDArray[np.int64]
Self = TypeVar("Self", bound="LabelledImages")
T = TypeVar("T", bound="Files")


@dataclass(frozen=True)
class LabelledImages(ABC):
    """Images with their labels; picklable, safe to share between threads.

    Attributes:
        classes: class names; a label is an index into them.
        labels: `[images]`, int64.
        validation: indices that the data set's authors set aside from training for validation; None: they did not.
        groups: what each image belongs to, such as its speaker; a group stays on one side of every cut. None: every
            image stands for itself.
        notes: what a user should know of how the data was read.
    """

    classes: tuple[str, ...]
    labels: Labels
    validation: Labels | None = field(default=None, kw_only=True)
    groups: tuple[str, ...] | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message: its path, or its place in the data set."""

    def key(self, index: int) -> str:
        """The image's name within its data set, the same wherever the data set lies: what groups and cuts go by."""
        return self.name(index)

    def with_groups(self: Self, groups: Sequence[str]) -> Self:
        """The same images, each with its group."""
        return replace(self, groups=tuple(groups))

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image as a file: the very bytes on disk, or a lossless PNG. Raises DataError."""

    @abstractmethod
    def decoded(self, index: int, how: Preprocessing) -> Decoded:
        """The image as the gateway would send it to a device, and remarks on it. Raises DataError."""

    def prepared(self, index: int, how: Preprocessing) -> UInt8:
        """The image as the gateway would send it to a device, uint8 `[channels, height, width]`. Raises DataError."""
        return self.decoded(index, how).array

    def check_decodable(self) -> None:
        """Whether what decoding needs is installed, told without reading a file. Raises MissingExtraError."""
        return

    @abstractmethod
    def content(self, index: int) -> str:
        """SHA-256 of what the image is made of, hex. Of a file that is empty or cannot be read, a text of its own."""

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The `content` of each image, as it was when this was first asked for."""
        return tuple(self.content(index) for index in range(len(self)))

    @cached_property
    def copies(self) -> Labels:
        """For each image a number, the same for all that are copies of each other, byte for byte: `[images]`, int64."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(content, len(numbers)) for content in self.contents], dtype=np.int64)

    def with_classes(self, classes: Sequence[str]) -> LabelledImages:
        """The same images, labelled by the position of their class name in `classes`.

        Raises:
            DataError: a class of the data is not among `classes`.
        """
        position = {unicodedata.normalize("NFC", name): index for index, name in enumerate(classes)}
        own = [unicodedata.normalize("NFC", name) for name in self.classes]
        unknown = [name for name in own if name not in position]
        if unknown:
            raise DataError(
                f"the data has classes that the model does not know: {shorten(unknown)} "
                f"(the model knows {shorten(classes)})"
            )
        mapping = np.array([position[name] for name in own], dtype=np.int64)
        return replace(self, classes=tuple(classes), labels=mapping[self.labels])


@dataclass(frozen=True)
class ArrayImages(LabelledImages):
    """Images held in memory: `pixels` is uint8, `[images, height, width]` or `[images, height, width, 3]`."""

    pixels: UInt8
    source: str

    def content(self, index: int) -> str:
        return hashlib.sha256(self.pixels[index].tobytes()).hexdigest()

    def name(self, index: int) -> str:
        return f"{self.source} #{index}"

    def image(self, index: int) -> Image.Image:
        """As a picture."""
        return Image.fromarray(self.pixels[index])

    def decoded(self, index: int, how: Preprocessing) -> Decoded:
        return Decoded(image_to_array(self.image(index), how))

    def encoded(self, index: int) -> bytes:
        buffer = io.BytesIO()
        self.image(index).save(buffer, format="PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Files(LabelledImages):
    """Files that stay on disk until asked for."""

    paths: tuple[Path, ...]
    root: Path | None = field(default=None, kw_only=True)
    """The data set's folder; None: it is not known, and files go by their own names."""

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def key(self, index: int) -> str:
        return relative_name(self.paths[index], self.root)

    def take(self: T, chosen: Labels, *notes: str) -> T:
        """The files at these indices, with more notes."""
        return replace(
            self,
            labels=self.labels[chosen],
            paths=tuple(self.paths[index] for index in chosen),
            groups=None if self.groups is None else tuple(self.groups[index] for index in chosen),
            notes=(*self.notes, *notes),
        )

    def content(self, index: int) -> str:
        return _content(self.paths[index]) or f"nothing in {self.key(index)}"

    def decoded(self, index: int, how: Preprocessing) -> Decoded:
        # The gateway's own decoder: it may decode a large JPEG at a reduced scale, which changes pixels slightly.
        with _named(self.paths[index]):
            return read_file(self.encoded(index), how)

    def encoded(self, index: int) -> bytes:
        path = self.paths[index]
        with _named(path):
            return path.read_bytes()


@dataclass(frozen=True)
class FileImages(Files):
    """Image files."""

    def check_decodable(self) -> None:
        suffixes = {path.suffix.lower() for path in self.paths}
        for name in sorted({formats.EXTENSIONS[suffix] for suffix in suffixes if suffix in formats.EXTENSIONS}):
            if name not in formats.readable():
                raise MissingExtraError(f"{self.root or 'the data'}: {formats.needed_for(name)}")

    def image(self, index: int) -> Image.Image:
        """Decoded in full. Raises DataError naming the file when it is unreadable."""
        with _named(self.paths[index]):
            image = open_image(self.encoded(index))
            try:
                image.load()
            except Exception:  # Pillow's decoders raise many kinds on damaged files
                raise ImageError("not a readable image") from None
            return image


@dataclass(frozen=True)
class FileSounds(Files):
    """Sound files; how they become images is for `Preprocessing.spectrogram` to say."""

    def check_decodable(self) -> None:
        check_installed()

    def typical(self, sample: int = 200) -> tuple[float, int]:
        """Median length to a tenth of a second, and the commonest rate in Hz, of at most `sample` clips, evenly spaced.

        Clips that cannot be read are passed over: decoding tells of all of them.

        Raises:
            DataError: none of them can be read.
        """
        found, problem = [], None
        for path in self.paths[:: max(1, len(self) // sample)]:
            try:
                with _named(path):
                    found.append(duration_and_rate(path))
            except DataError as error:
                problem = problem or error
        if not found:
            raise problem or DataError("no sound file can be read")
        seconds = max(0.1, round(float(np.median([seconds for seconds, _ in found])), 1))
        rates = Counter(rate for _, rate in found)
        return seconds, max(rates, key=lambda rate: (rates[rate], rate))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong with a file within the block is a DataError that names it."""
    try:
        yield
    except ImageError as error:
        raise DataError(f"{path}: {error}; replace or remove the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None


def _content(path: Path) -> str | None:
    """SHA-256 of a file, hex; None: it is empty or cannot be read, which decoding tells."""
    try:
        state = path.stat()
        if state.st_size == 0:
            return None
        return _digest(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except OSError:
        return None


@cache
def _digest(path: Path, *state: int) -> str:
    """The SHA-256 of a file in this state; a build asks for it several times."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def relative_name(path: Path, root: Path | None) -> str:
    """A file's name from its data set's folder on, with `/` and composed (NFC): the same on every system."""
    return unicodedata.normalize("NFC", path.name if root is None else path.relative_to(root).as_posix())


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """`a, b, c` or, when there are many, `a, b, c and 7 more`."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[: limit - 1])} and {len(names) - limit + 1} more"
