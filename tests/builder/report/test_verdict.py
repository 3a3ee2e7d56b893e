"""The verdict: one line of the table for each thing that it can say, and its limits."""

from pathlib import Path

import numpy as np
import pytest

from edvit.builder.report.statistics import ALPHA
from edvit.builder.report.verdict import COARSE, LOST_POINTS, WEAK, WORTH_POINTS, judge

PAGE = Path(__file__).parents[3] / "docs" / "decisions" / "2026-11-27-verdict.md"


def accurate(images, *ranges):
    """Answers of which those in the ranges are accurate."""
    answers = np.zeros(images, dtype=bool)
    for start, stop in ranges:
        answers[start:stop] = True
    return answers


def build(images, base, fused, n1, *, submodels=5, chance=0.1, noun="image"):
    """A verdict on models that get the first so many images, or the images between two numbers."""
    base, fused, n1 = (
        None if given is None else accurate(images, given if isinstance(given, tuple) else (0, given))
        for given in (base, fused, n1)
    )
    return judge(base, fused, n1, submodels=submodels, chance=chance, noun=noun)


CASES = {
    "five are better": (
        build(1000, 900, 880, 850),
        "fused",
        "Deploy the fused five: they are 3.0 points more accurate than N = 1 (p < 0.001).",
    ),
    "ten are better, and no worse than the base": (
        build(1000, 900, 900, 850, submodels=10),
        "fused",
        "Deploy the fused ten: they are 5.0 points more accurate than N = 1 (p < 0.001).",
    ),
    "twelve": (
        build(1000, 900, 880, 850, submodels=12),
        "fused",
        "Deploy the fused 12: they are 3.0 points more accurate than N = 1 (p < 0.001).",
    ),
    "five are as good as one": (
        build(1000, 900, 880, 880),
        "n1",
        "Deploy N = 1: five are not shown to be better (p = 1).",
    ),
    "five are better by too little": (
        build(1000, 900, 880, 875),
        "n1",
        "Deploy N = 1: five are not shown to be better (p = 0.062).",
    ),
    "five are shown to be better by one image more": (
        build(1000, 900, 880, 874),
        "fused",
        "Deploy the fused five: they are 0.6 points more accurate than N = 1 (p = 0.031).",
    ),
    "five are worse": (
        build(1000, 900, 850, 880),
        "n1",
        "Deploy N = 1: five are 3.0 points less accurate than N = 1 (p < 0.001).",
    ),
    "a weak base": (
        build(1000, 400, 390, 390),
        "base",
        "Train the base longer: its accuracy is 37.0 to 43.1 %, "
        "and naming the commonest class each time reaches 10.0 %.",
    ),
    "a base that only names the commonest class": (
        build(4000, 3600, 3600, 3600, chance=0.9),
        "base",
        "Train the base longer: its accuracy is 89.0 to 90.9 %, "
        "and naming the commonest class each time reaches 90.0 %.",
    ),
    "sub-models beat the base": (
        build(1000, 895, 921, 900),
        "base",
        "Train the base longer: the fused five are 2.6 points more accurate than the base (p < 0.001).",
    ),
    "N = 1 beats the base": (
        build(1000, 895, 895, 921),
        "base",
        "Train the base longer: N = 1 is 2.6 points more accurate than the base (p < 0.001).",
    ),
    "sub-models beat the base by less than is worth a training": (
        build(10_000, 8850, 8900, 8850),
        "fused",
        "Deploy the fused five: they are 0.5 points more accurate than N = 1 (p < 0.001).",
    ),
    "too few images": (
        build(40, 36, 36, 35),
        "images",
        "Too few test images to tell: by 40 images the fused accuracy is 77 to 96 %.",
    ),
    "too few sounds": (
        build(40, 36, 36, 35, noun="sound"),
        "images",
        "Too few test sounds to tell: by 40 sounds the fused accuracy is 77 to 96 %.",
    ),
    "few images, and still a difference is shown": (
        build(60, 56, 55, 45),
        "fused",
        "Deploy the fused five: they are 16.7 points more accurate than N = 1 (p = 0.002).",
    ),
    "too few images, without a baseline": (
        build(40, 36, 35, None),
        "images",
        "Too few test images to tell: by 40 images the fused accuracy is 74 to 95 %.",
    ),
    "without a baseline": (
        build(1000, 900, 880, None),
        "unknown",
        "Nothing can be said about five against one: N = 1 was not built (--no-baseline).",
    ),
    "without a baseline, sub-models beat the base": (
        build(1000, 895, 921, None),
        "base",
        "Train the base longer: the fused five are 2.6 points more accurate than the base (p < 0.001).",
    ),
    "without a baseline, much is lost": (
        build(1000, 900, 700, None),
        "recover",
        "Recover longer or keep more: the fused five are 20.0 points less accurate than the base (p < 0.001).",
    ),
    "five are better, and much is lost": (
        build(1000, 900, 700, 600),
        "recover",
        "Recover longer or keep more: the fused five are 20.0 points less accurate than the base (p < 0.001).",
    ),
    "five are no better, and much is lost": (
        build(1000, 900, 700, 700),
        "recover",
        "Recover longer or keep more: N = 1 is 20.0 points less accurate than the base (p < 0.001).",
    ),
    "five lose much, and one does not": (
        build(1000, 900, 700, 880),
        "n1",
        "Deploy N = 1: five are 18.0 points less accurate than N = 1 (p < 0.001).",
    ),
    "one sub-model": (
        build(1000, 900, 880, None, submodels=1),
        "whole",
        "Deploy the one sub-model: it is 2.0 points less accurate than the base (p < 0.001).",
    ),
    "one sub-model that is the base": (
        build(1000, 900, 900, None, submodels=1),
        "whole",
        "Deploy the one sub-model: it is not shown to differ from the base (p = 1).",
    ),
    "one sub-model loses much": (
        build(1000, 900, 700, None, submodels=1),
        "recover",
        "Recover longer or keep more: the sub-model is 20.0 points less accurate than the base (p < 0.001).",
    ),
    "one sub-model, too few images": (
        build(20, 18, 18, None, submodels=1),
        "images",
        "Too few test images to tell: by 20 images the fused accuracy is 70 to 97 %.",
    ),
    "one image": (
        build(1, 1, 1, 1),
        "images",
        "Too few test images to tell: by 1 image the fused accuracy is 21 to 100 %.",
    ),
}


@pytest.mark.parametrize(("verdict", "advice", "text"), CASES.values(), ids=CASES)
def test_verdict(verdict, advice, text):
    assert (verdict.advice, verdict.text) == (advice, text)


def test_remarks_say_what_it_costs():
    cost = "The fused five are 2.0 points less accurate than the base (p < 0.001)."
    assert build(1000, 900, 880, 850).remarks == (cost,)
    assert build(1000, 900, 880, 880).remarks == ("N = 1 is 2.0 points less accurate than the base (p < 0.001).",)
    assert build(1000, 900, 700, 600).remarks == ("Five are 10.0 points more accurate than N = 1 (p < 0.001).",)


def test_a_weak_base_does_not_hide_what_to_deploy():
    assert build(1000, 895, 921, 900).remarks == (
        "With the base as it is: deploy the fused five: they are 2.1 points more accurate than N = 1 (p < 0.001).",
        "The fused five are 2.6 points more accurate than the base (p < 0.001).",
    )


def test_pairing_counts_and_not_the_accuracies_alone():
    """The same accuracies: on the same images nothing differs but six, on other images more than a hundred."""
    same = build(1000, 900, (0, 880), (0, 874))
    other = build(1000, 900, (0, 880), (60, 934))
    assert (same.advice, other.advice) == ("fused", "n1")


def test_the_decision_names_every_threshold_as_it_is():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"p < {ALPHA:.2f}" in page
    assert f"± {100 * COARSE:.0f} points (`COARSE`" in page
    assert f"{WORTH_POINTS:g} point (`WORTH_POINTS`)" in page
    assert f"{LOST_POINTS:g} points (`LOST_POINTS`)" in page
    assert (
        f"ten equal classes that is {100 * (0.1 + WEAK * 0.9):.0f} %, with two {100 * (0.5 + WEAK * 0.5):.0f} %" in page
    )
