"""Copies of an image stay on one side of a cut, and without copies a cut is the plain one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edvit.inputs.datasets.splits import fixed_split, held_out

drawn_classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=80)


def by_class(labels):
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


@given(drawn_classes, st.sampled_from([0.05, 0.2, 0.5]))
def test_copies_are_on_one_side_and_no_class_is_taken_whole(pairs, share):
    labels, copies = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    held = held_out(by_class(labels), copies, share)
    for image in np.unique(copies):
        assert len(set(held[copies == image])) == 1
    for label in np.unique(labels):
        assert not held[labels == label].all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.sampled_from([0.05, 0.2, 0.5]))
def test_without_copies_the_first_of_each_class_are_taken(labels, share):
    labels = np.array(labels, dtype=np.int64)
    expected = []
    for members in by_class(labels):
        expected += members[: min(max(1, round(share * len(members))), len(members) - 1)].tolist()
    assert np.flatnonzero(held_out(by_class(labels), np.arange(len(labels)), share)).tolist() == sorted(expected)


def test_a_class_of_twos_or_threes_gives_its_share():
    for times in (2, 3):
        copies = np.repeat(np.arange(10), times)
        held = held_out([np.arange(10 * times)], copies, 0.2)
        assert held.sum() == 2 * times


def test_an_image_of_many_copies_is_not_held_out():
    copies = np.array([0] * 91 + list(range(1, 10)))
    assert np.flatnonzero(held_out([np.arange(100)], copies, 0.1)).tolist() == [91]


def test_a_class_of_copies_of_one_image_is_for_training():
    assert not held_out([np.arange(5)], np.zeros(5, dtype=np.int64), 0.2).any()


def test_the_fixed_fifth_keeps_copies_together():
    names, labels = [f"{i}.png" for i in range(40)], np.repeat(np.arange(2), 20)
    copies = np.arange(40) // 2
    test = fixed_split(names, labels, copies, "test")
    train = fixed_split(names, labels, copies, "train")
    assert not set(copies[test]) & set(copies[train])
    assert np.bincount(labels[test]).tolist() == [4, 4]
