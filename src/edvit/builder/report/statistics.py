"""What a share of accurate answers says: its interval, and whether two models differ on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Correct = npt.NDArray[np.bool_]
"""Whether a model's answer to each image is its label, `[n]`."""

CONFIDENCE = 0.95
"""Share of such intervals that hold the true value, for every interval here."""
ALPHA = 1 - CONFIDENCE
"""A difference is shown where its p is below this."""


@dataclass(frozen=True)
class Share:
    """How many of some images are answered accurately."""

    correct: int
    images: int

    @classmethod
    def of(cls, correct: Correct) -> Share:
        """The share of a model's answers that are accurate."""
        return cls(int(np.count_nonzero(correct)), len(correct))

    @property
    def value(self) -> float | None:
        """The accuracy, 0 to 1; None where there are no images."""
        return self.correct / self.images if self.images else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy at `CONFIDENCE`; 0 to 1 where there are no images."""
        if not self.images:
            return 0.0, 1.0
        found = binomtest(self.correct, self.images).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Difference:
    """Two models on the same images.

    Attributes:
        more: images that the first answers accurately and the second does not.
        less: images that the second answers accurately and the first does not.
        images: all of them.
    """

    more: int
    less: int
    images: int

    @classmethod
    def of(cls, first: Correct, second: Correct) -> Difference:
        """The first model against the second."""
        return cls(int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first)), len(first))

    @property
    def points(self) -> float:
        """The first accuracy less the second, in percentage points; 0 where there are no images."""
        return 100 * (self.more - self.less) / max(self.images, 1)

    @property
    def p(self) -> float:
        """The exact McNemar test, two-sided: a binomial test of the images that one of the two alone gets."""
        alone = self.more + self.less
        return float(binomtest(self.more, alone).pvalue) if alone else 1.0

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference."""
        return self.p < ALPHA


def p_text(p: float) -> str:
    """`p = 0.41`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
