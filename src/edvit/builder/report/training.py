"""What the trainings of a build noted: the accuracy that each ended with, and its loss by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edvit.builder.jobs.job import Note
from edvit.builder.report.statistics import Share

Kind = Literal["base model", "sub-models", "fusion"]
"""What is trained; losses of one kind are of one scale."""


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        name: what was trained.
        kind: of what kind that is.
        validation: its accuracy on the validation images at the end.
        loss: mean training loss of each epoch; empty where it was not noted.
        held_out: loss on the validation images after each epoch, where the training chose its epoch by it.
    """

    name: str
    kind: Kind
    validation: Share
    loss: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, kind: Kind, note: Note, images: int) -> Training:
        """From a training's note; its accuracy was measured on so many validation images."""
        curve = note.get("curve", {})
        share = Share(round(note["validation"] * images), images)
        return cls(name, kind, share, tuple(curve.get("loss", ())), tuple(curve.get("validation", ())))


def curve_panels(trainings: Sequence[Training]) -> list[tuple[str, Mapping[str, Sequence[float]]]]:
    """What there is to draw: a title, and the losses by epoch of each training by its name."""
    panels: list[tuple[str, Mapping[str, Sequence[float]]]] = []
    for kind in get_args(Kind):
        of_kind = [one for one in trainings if one.kind == kind]
        panels.append((f"{kind}: training loss", {one.name: one.loss for one in of_kind if one.loss}))
        panels.append((f"{kind}: validation loss", {one.name: one.held_out for one in of_kind if one.held_out}))
    return [(title, curves) for title, curves in panels if curves]
