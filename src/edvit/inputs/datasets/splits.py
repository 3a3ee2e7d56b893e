"""Cuts of a data set whose authors made none.

Hashes decide, and no random generator: a cut must be the same in ten years, whatever NumPy then does, on any disk, and
in `edvit build` and `edvit evaluate` alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edvit.inputs.datasets.images import Labels, Split

TEST_SHARE = 0.2


def fixed_split(
    names: Sequence[str], labels: Labels, copies: Labels, split: Split, groups: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Indices of a split. Of each class a fifth is for testing: those whose names come first in order of their SHA-256.
    A class of one image is for training.

    Args:
        names: of the images, each once in its class.
        labels: `[images]`.
        copies: `[images]`, see `LabelledImages.copies`.
        split: which indices are wanted.
        groups: of the images; where they are given, whole groups are for testing, see `grouped_split`.
    """
    if groups is not None:
        test = grouped_split(groups, labels, copies, TEST_SHARE)
    else:
        rank = _ranks(names)
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        test = held_out([own[np.argsort(rank[own], kind="stable")] for own in members], copies, TEST_SHARE)
    return np.flatnonzero(test if split == "test" else ~test)


def held_out(drawn: Sequence[npt.NDArray[np.int64]], copies: Labels, share: float) -> npt.NDArray[np.bool_]:
    """Which images are held out, `[images]`: `share` of each class, at least one image where there are two.

    Copies of an image stay together: the share is one of different images, and an image whose copies are more than the
    share of the files is passed over. One that has copies in several classes, of which one holds it out, is trained on.

    Args:
        drawn: the images of each class, in the order in which they are taken.
        copies: `[images]`, see `LabelledImages.copies`.
        share: of each class.
    """
    held = np.zeros(len(copies), dtype=np.bool_)
    for members in drawn:
        which, first, sizes = np.unique(copies[members], return_index=True, return_counts=True)
        files, different = _count(share, len(members)), _count(share, len(which))
        order = np.argsort(first)
        taken: list[int] = []
        for image in order:
            if len(taken) == different:
                break
            if sizes[image] <= files:
                taken.append(image)
                files -= int(sizes[image])
        if not taken and different:
            taken = [order[np.argmin(sizes[order])]]
        held[members] = np.isin(copies[members], which[taken])
    return held & ~np.isin(copies, copies[~held])


def _count(share: float, number: int) -> int:
    return min(max(1, round(share * number)), number - 1)


def grouped_split(groups: Sequence[str], labels: Labels, copies: Labels, share: float) -> npt.NDArray[np.bool_]:
    """Which images are held out, `[images]`: whole groups, and of each class about `share`.

    Groups that have copies of one image in common, byte for byte (`LabelledImages.copies`), are one group.

    Groups are gone through in the order of their SHA-256, and one is taken where that brings its classes nearer to
    their share. A class of which nothing was taken then gives its smallest group. No class is taken whole, so one whose
    images are all of one group is not held out at all.
    """
    names, member = np.unique(np.asarray(_joined(groups, copies), dtype=object), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(counts, (member, labels), 1)
    total, held = counts.sum(axis=0), np.zeros(counts.shape[1], dtype=np.int64)
    wanted = share * total
    taken = np.zeros(len(names), dtype=np.bool_)
    order = np.argsort(_ranks([str(name) for name in names]), kind="stable")

    def can_take(group: int) -> bool:
        own = np.flatnonzero(counts[group])
        return bool(not taken[group] and (held[own] + counts[group, own] < total[own]).all())

    for group in order:
        own = np.flatnonzero(counts[group])
        before, after = np.abs(wanted - held)[own], np.abs(wanted - held - counts[group])[own]
        if can_take(group) and ((before - after) / total[own]).sum() > 0:
            taken[group] = True
            held += counts[group]
    for label in range(len(total)):
        if held[label] == 0:
            able = [group for group in order if counts[group, label] and can_take(group)]
            if able:
                smallest = min(able, key=lambda group: counts[group].sum())
                taken[smallest] = True
                held += counts[smallest]
    return np.asarray(taken[member], dtype=np.bool_)


def why_none(groups: Sequence[str], labels: Labels) -> str:
    """Why `grouped_split` holds out nothing where it does not, in words."""
    pairs = set(zip(groups, labels.tolist(), strict=True))
    if len(pairs) == len({label for _, label in pairs}):
        return "no class has files of two groups"
    return "every group has all files of a class (groups with a copy of one file in common count as one)"


def _joined(groups: Sequence[str], copies: Labels) -> list[str]:
    """The group of each image, where those that share an image have the name of one of them."""
    leader = {group: group for group in groups}

    def find(group: str) -> str:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    owner: dict[int, str] = {}
    for group, image in zip(groups, copies.tolist(), strict=True):
        first, second = sorted((find(owner.setdefault(image, group)), find(group)))
        leader[second] = first
    return [find(group) for group in groups]


def _ranks(names: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in names], dtype=np.int64)
