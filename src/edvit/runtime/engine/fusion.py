"""The fusion of a bundle, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edvit.bundle import Manifest
from edvit.runtime.engine.session import check_values, open_session
from edvit.runtime.prediction import Float32


class FusionEngine:
    """The fusion of a bundle. Thread-safe.

    Raises:
        ModelError: the file is no usable ONNX model, or does not fit the manifest.
    """

    def __init__(self, path: Path, manifest: Manifest, *, threads: int = 1) -> None:
        self._order = manifest.fusion.submodels
        self._widths = [manifest.submodel(submodel).feature_dim for submodel in self._order]
        self._session = open_session(path, threads)
        inputs = {
            "features": ("tensor(float)", (sum(self._widths),)),
            "present": ("tensor(float)", (len(self._order),)),
        }
        check_values("input", self._session.get_inputs(), inputs)
        outputs = {"logits": ("tensor(float)", (len(manifest.data.classes),))}
        check_values("output", self._session.get_outputs(), outputs)
        self.run({}, batch=1)

    def run(self, features: Mapping[int, Float32], batch: int) -> Float32:
        """Features by sub-model id, each float32 `[batch, feature_dim]` -> logits, float32 `[batch, classes]`.

        An absent id is marked in `present`, and the graph's learned stand-in takes its place.
        """
        joined = np.zeros((batch, sum(self._widths)), np.float32)
        present = np.zeros((batch, len(self._order)), np.float32)
        start = 0
        for column, (submodel, width) in enumerate(zip(self._order, self._widths, strict=True)):
            if submodel in features:
                joined[:, start : start + width] = features[submodel]
                present[:, column] = 1.0
            start += width
        (logits,) = self._session.run(["logits"], {"features": joined, "present": present})
        result: Float32 = logits
        return result
