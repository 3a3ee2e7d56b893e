"""What a fleet must answer, whoever of it is missing: computed in this process."""

from __future__ import annotations

from edvit.runtime.predictor import LocalPredictor


class Reference:
    """The right answers for some images, uint8 `[batch, channels, height, width]`."""

    def __init__(self, bundle, images):
        self._manifest = bundle.manifest
        self._local = LocalPredictor(bundle)
        self._images = images
        self._known = {}

    def problem(self, which, answer, made=None):
        """What is wrong with an answer for one of the images, one line; None where nothing is.

        Args:
            answer: `ImageAnswer`.
            made: `Completeness`, what the answer was made of; None for the answer itself.
        """
        made = made or answer
        missing = tuple(made.missing)
        if missing not in self._known:
            self._known[missing] = self._local.run(self._images, absent=missing)
        expected = self._known[missing]
        if abs(answer.probability - float(expected.probabilities[which].max())) > 1e-6:
            return f"image {which}, without {missing}: another probability than that of one process"
        if answer.label != expected.labels[which]:
            return f"image {which}, without {missing}: {answer.label} in place of {expected.labels[which]}"
        if made.degraded != bool(missing) or made.missing_classes != self._manifest.classes_of(missing):
            return f"image {which}, without {missing}: not marked as what it is"
        return None
