from __future__ import annotations

import pytest

from edvit.builder.models.class_names import head_order
from edvit.errors import WeightsError

LABELS = ["cat", "dog", "owl", "bee", "ant"]
IMAGENET = ["n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane", "n02123045 tabby, tabby cat"]


def test_names_of_something_else_say_nothing():
    assert head_order(["n01440764", "n01443537"], ["cat", "dog"], "config.json") is None
    assert head_order(["chat", "chien"], ["cat", "dog"], "config.json") is None


def test_names_of_some_classes_are_refused():
    with pytest.raises(WeightsError, match=r"names 5 outputs, and not elk, gnu of the data's 3 classes"):
        head_order(LABELS, ["cat", "elk", "gnu"], "config.json")


def test_names_that_differ_in_case_alone_are_told_apart_where_they_are_exact():
    assert head_order(["A", "a", "b_c"], ["a", "A", "b c"], "x").rows == (1, 0, 2)


@pytest.mark.parametrize(
    ("names", "classes"),
    [(["a", "b", "a"], ["a", "b"]), (["A", "A", "b"], ["a", "b"]), (["a-b", "c"], ["a b", "a_b"])],
)
def test_a_name_that_is_there_twice_is_refused(names, classes):
    with pytest.raises(WeightsError, match="which output is which of the classes is not clear for a"):
        head_order(names, classes, "names.txt")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (IMAGENET, ["n02123045", "n01440764"]),
        (IMAGENET, ["n02123045-tabby", "n01440764_tench"]),
        (IMAGENET, ["Tabby_cat", "Tench"]),
        (["n01440764", "n02012849", "n03126707", "n02123045"], ["n02123045 tabby", "n01440764 tench"]),
        (["tench, Tinca tinca", "crane", "crane", "tabby, tabby cat"], ["tabby", "tench"]),
        (["tench, Tinca tinca", "crane", "crane", "tabby, tabby cat"], ["n02123045-tabby_cat", "n01440764-tench"]),
        (["tench", "maillot", "maillot, tabby", "tabby"], ["tabby", "tench"]),
    ],
)
def test_synsets_and_synonyms_are_found(names, classes):
    assert head_order(names, classes, "config.json").rows == (3, 0)


def test_a_word_of_two_synsets_is_not_clear():
    assert head_order(IMAGENET, ["n03126707-crane", "tench"], "config.json").rows == (2, 0)
    with pytest.raises(WeightsError, match="which output is which of the classes is not clear for crane"):
        head_order(IMAGENET, ["crane", "tench"], "config.json")
