"""The verdict: what a careful colleague advises after the test stage (docs/decisions/2026-11-27-verdict.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edvit.builder.report.statistics import Correct, Difference, Share, p_text
from edvit.units import counted

Advice = Literal["base", "images", "fused", "n1", "recover", "whole", "unknown"]

WEAK = 0.5
"""A base model is weak where it gets less than this part of the way from naming the commonest class to no mistake."""
WORTH_POINTS = 1.0
"""By so many points, at least, sub-models must be more accurate than their base before it is called undertrained."""
LOST_POINTS = 10.0
"""A split that loses more than this against the base was recovered for too short a time, or keeps too little."""
COARSE = 0.05
"""Half the width of an accuracy's interval from which on a difference that is not shown says nothing."""

_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Verdict:
    """What to do, in words.

    Attributes:
        advice: `base` train it longer, `images` too few to tell, `fused` deploy the sub-models, `n1` deploy N = 1,
            `recover` longer or keep more, `whole` deploy the only sub-model, `unknown` there is no baseline.
        text: one sentence.
        remarks: further sentences.
    """

    advice: Advice
    text: str
    remarks: tuple[str, ...] = ()


def judge(
    base: Correct, fused: Correct, n1: Correct | None, *, submodels: int, chance: float, noun: str = "image"
) -> Verdict:
    """Judge a build by its answers to the test images.

    Args:
        base: of the base model.
        fused: of all sub-models together.
        n1: of N = 1 at the same width; None where it was not built.
        submodels: how many are fused.
        chance: accuracy of naming the commonest class each time, 0 to 1.
        noun: `image` or `sound`.
    """
    split = _judge_split(base, fused, n1, submodels=submodels, noun=noun)
    problem = _problem_of_base(base, fused, n1, submodels=submodels, chance=chance)
    if problem is None:
        return split
    as_it_is = f"With the base as it is: {split.text[0].lower()}{split.text[1:]}"
    return Verdict("base", f"Train the base longer: {problem}.", (as_it_is, *split.remarks))


def _problem_of_base(base: Correct, fused: Correct, n1: Correct | None, *, submodels: int, chance: float) -> str | None:
    low, high = Share.of(base).interval
    if high < chance + WEAK * (1 - chance):
        return (
            f"its accuracy is {100 * low:.1f} to {100 * high:.1f} %, and naming the commonest class each time "
            f"reaches {100 * chance:.1f} %"
        )
    for subject, correct in ((_subject(submodels), fused), ("N = 1 is", n1)):
        if correct is not None:
            gain = Difference.of(correct, base)
            if gain.shown and gain.points >= WORTH_POINTS:
                return f"{subject} {_against(gain, 'the base')}"
    return None


def _judge_split(base: Correct, fused: Correct, n1: Correct | None, *, submodels: int, noun: str) -> Verdict:
    """What to deploy, whatever the base is worth."""
    several, subject = _words(submodels), _subject(submodels)
    loss = Difference.of(fused, base)
    gain = None if n1 is None else Difference.of(fused, n1)
    cost = f"{subject[0].upper()}{subject[1:]} {_against(loss, 'the base')}."
    if not (loss if gain is None else gain).shown and _is_coarse(fused):
        low, high = Share.of(fused).interval
        text = (
            f"Too few test {noun}s to tell: by {counted(len(fused), noun)} the fused accuracy is "
            f"{100 * low:.0f} to {100 * high:.0f} %."
        )
        return Verdict("images", text, (cost,))
    if n1 is None or gain is None:
        if _is_large(loss):
            return Verdict("recover", f"Recover longer or keep more: {subject} {_against(loss, 'the base')}.")
        if submodels == 1:
            return Verdict("whole", f"Deploy the one sub-model: it is {_against(loss, 'the base')}.")
        text = f"Nothing can be said about {several} against one: N = 1 was not built (--no-baseline)."
        return Verdict("unknown", text, (cost,))
    better = gain.shown and gain.points > 0
    chosen, who = (loss, subject) if better else (Difference.of(n1, base), "N = 1 is")
    compared = f"{several} are {_against(gain, 'N = 1')}"
    if _is_large(chosen):
        text = f"Recover longer or keep more: {who} {_against(chosen, 'the base')}."
        return Verdict("recover", text, (f"{compared[0].upper()}{compared[1:]}.",))
    if better:
        return Verdict("fused", f"Deploy the fused {several}: they are {_against(gain, 'N = 1')}.", (cost,))
    if not gain.shown:
        compared = f"{several} are not shown to be better ({p_text(gain.p)})"
    return Verdict("n1", f"Deploy N = 1: {compared}.", (f"N = 1 is {_against(chosen, 'the base')}.",))


def _is_large(loss: Difference) -> bool:
    return loss.shown and loss.points <= -LOST_POINTS


def _is_coarse(correct: Correct) -> bool:
    low, high = Share.of(correct).interval
    return (high - low) / 2 > COARSE


def _against(difference: Difference, other: str) -> str:
    """The predicate of a sentence whose verb stands before it."""
    p = p_text(difference.p)
    if not difference.shown:
        return f"not shown to differ from {other} ({p})"
    points = difference.points
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate than {other} ({p})"


def _words(number: int) -> str:
    return _WORDS[number] if number < len(_WORDS) else f"{number}"


def _subject(submodels: int) -> str:
    return "the sub-model is" if submodels == 1 else f"the fused {_words(submodels)} are"
