"""What the trainings of a build noted: the accuracy that each ended with, and its course by epoch."""

from __future__ import annotations

from dataclasses import dataclass

from edvit.builder.jobs.job import Note
from edvit.builder.report.statistics import Share

CURVE = "curve"
"""Where a training notes its course: `{"loss": […], "validation": […]}`, a number for each epoch in both."""


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        name: what was trained.
        validation: its accuracy on the validation images at the end.
        loss: mean training loss of each epoch; empty where it was not noted.
        course: accuracy on the validation images after each epoch, 0 to 1; empty where it was not noted.
    """

    name: str
    validation: Share
    loss: tuple[float, ...] = ()
    course: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, note: Note, images: int) -> Training:
        """From a training's note; its accuracy was measured on so many validation images."""
        curve = note.get(CURVE, {})
        share = Share(round(note["validation"] * images), images)
        return cls(name, share, tuple(curve.get("loss", ())), tuple(curve.get("validation", ())))
