from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.builder.models import question


def answers(accuracy, labels, classes, seed=0):
    """Predictions that are right with that probability, otherwise any class."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < accuracy, labels, rng.integers(0, classes, len(labels)))


def labels_of(classes, each):
    return np.repeat(np.arange(classes), each)


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95, 1.0])
def test_an_order_sorted_letter_by_letter_is_found(accuracy):
    names = [str(number) for number in range(1, 11)]
    labels = labels_of(10, 40)
    as_sorted = sorted(names)
    outputs = np.array([as_sorted.index(name) for name in names])  # the output that stands for each class
    predicted = outputs[answers(accuracy, labels, 10)]
    order = question.other_order(predicted, labels, 10)
    assert order is not None
    assert [names[index] for index in order] == as_sorted
    assert "letter by letter, as torchvision's ImageFolder" in question.describe_order(order, names)


def test_two_classes_that_changed_places_are_named():
    labels = labels_of(6, 40)
    swapped = np.array([0, 1, 4, 3, 2, 5])
    order = question.other_order(swapped[answers(0.9, labels, 6)], labels, 6)
    assert question.describe_order(order, list("fedcba")) == "output 2 like 'b', output 4 like 'd'"


def test_outputs_are_numbered_as_in_the_head_that_they_were_taken_of():
    order = np.array([1, 0, 2])
    assert question.describe_order(order, list("fed"), head=(7, 5, 9)) == "output 5 like 'f', output 7 like 'e'"
    assert "letter by letter" in question.describe_order(order, list("bac"), head=(0, 1, 2))


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.integers(2, 30))
def test_a_right_order_is_never_called_wrong(seed, classes, accuracy, each):
    """Also for models that guess: the order is tested on images that it was not matched on."""
    labels = labels_of(classes, each)
    assert question.other_order(answers(accuracy, labels, classes, seed), labels, classes) is None


def test_one_class_taken_for_another_is_no_other_order():
    labels = labels_of(5, 40)
    predicted = np.where(labels == 3, 2, labels)
    assert question.other_order(predicted, labels, 5) is None


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_is_near_chance(classes):
    labels = labels_of(classes, 400 // classes)
    assert question.near_chance(answers(0.0, labels, classes), labels, classes)
    assert question.near_chance(np.zeros_like(labels), labels, classes)
    assert not question.near_chance(answers(0.5, labels, classes), labels, classes)


def test_few_images_are_enough_where_they_are_right():
    labels = labels_of(10, 1)
    assert not question.near_chance(labels, labels, 10)
    assert question.near_chance(labels, labels, 10) is False


def test_better_is_a_clear_gain():
    labels = labels_of(10, 40)
    poor, good = answers(0.3, labels, 10), answers(0.85, labels, 10)
    assert question.better(poor, good, labels)
    assert not question.better(good, poor, labels)
    assert not question.better(good, good, labels)
    assert not question.better(answers(0.83, labels, 10, 1), good, labels)
