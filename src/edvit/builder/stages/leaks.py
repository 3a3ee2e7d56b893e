"""What makes a measured accuracy mean less than it says: images that lie in two splits, or under two labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edvit.errors import DataError
from edvit.inputs.datasets import FileSounds, LabelledImages


@dataclass(frozen=True)
class _Part:
    """Some images of a split: their names and labels by their content."""

    images: LabelledImages
    by_content: dict[str, int]

    @classmethod
    def of(cls, images: LabelledImages, rows: Sequence[int]) -> _Part:
        return cls(images, {images.contents[row]: row for row in reversed(rows)})

    def shared(self, images: LabelledImages, rows: Sequence[int]) -> list[int]:
        """Those of the rows that lie here as well."""
        return [row for row in rows if images.contents[row] in self.by_content]

    def example(self, images: LabelledImages, row: int) -> str:
        """`test/cat/1.png, which is train/cat/7.png`."""
        return f"{images.key(row)}, which is {self.images.key(self.by_content[images.contents[row]])}"


def leaks(train: LabelledImages, test: LabelledImages, read: Sequence[int], tested: Sequence[int]) -> tuple[str, ...]:
    """A sentence for each kind of leak; files are compared byte for byte.

    Args:
        train: the training split, with the validation images that the data set's authors chose.
        test: the test split, labelled as `train` is.
        read: rows of `train` that can be read; the same page of an error in place of many images is no copy.
        tested: rows of `test` that can be read.

    Raises:
        DataError: half of the test images or more are training images.
    """
    noun = "sound" if isinstance(train, FileSounds) else "image"
    chosen = set() if train.validation is None else set(train.validation.tolist())
    trained, validated = [row for row in read if row not in chosen], [row for row in read if row in chosen]
    of_training, of_validation = _Part.of(train, trained), _Part.of(train, validated)
    found = []
    if rows := of_training.shared(test, tested):
        text = (
            f"test {noun}s that are training {noun}s as well, byte for byte: {len(rows):,} of {len(tested):,}, such as "
            f"{of_training.example(test, rows[0])}; the test accuracy means nothing for them"
        )
        if 2 * len(rows) >= len(tested):
            raise DataError(f"{text}; give test {noun}s that are not in the training data")
        found.append(text)
    if rows := of_training.shared(train, validated):
        found.append(
            f"validation {noun}s that are training {noun}s as well, byte for byte: {len(rows):,} of "
            f"{len(validated):,}, such as {of_training.example(train, rows[0])}; the validation accuracy means nothing "
            "for them"
        )
    if rows := of_validation.shared(test, tested):
        found.append(
            f"test {noun}s that are validation {noun}s as well, byte for byte: {len(rows):,} of {len(tested):,}, such "
            f"as {of_validation.example(test, rows[0])}; the test accuracy may be too high"
        )
    return (*found, *_two_labels([(train, read), (test, tested)], noun))


def _two_labels(splits: Sequence[tuple[LabelledImages, Sequence[int]]], noun: str) -> list[str]:
    """What lies under several labels, in one split or in two."""
    first: dict[str, tuple[LabelledImages, int]] = {}
    pairs: dict[str, str] = {}
    for images, rows in splits:
        for row in rows:
            content = images.contents[row]
            others, other = first.setdefault(content, (images, row))
            if others.labels[other] != images.labels[row]:
                pairs.setdefault(content, f"{others.key(other)} and {images.key(row)}")
    if not pairs:
        return []
    examples = "; ".join(list(pairs.values())[:2])
    return [
        f"{noun}s that lie under more than one label, byte for byte: {len(pairs):,}, such as {examples}; at most one "
        "label of each is right"
    ]
