"""A whole bundle in one process."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import overload

import numpy as np

from edvit.bundle import Bundle
from edvit.errors import BundleError, ImageError, ModelError
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.submodel import SubModelEngine, check_images
from edvit.runtime.prediction import Answer, Float32, Prediction, Timings, UInt8
from edvit.runtime.source import BYTES, File, Source, check_array, to_array, what


class LocalPredictor:
    """A whole bundle in one process: what predictions over the network must equal exactly. Thread-safe.

    Args:
        bundle: a verified bundle.
        threads: CPU threads of one run.
        unknown_below: an image whose most probable class is less probable than this is taken for none of the classes.

    Raises:
        BundleError: a model of the bundle is unusable.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, unknown_below: float = 0.0) -> None:
        manifest = bundle.manifest
        self._unknown_below = unknown_below
        self._preprocessing = manifest.preprocessing
        self._manifest = manifest
        try:
            self._submodels = {
                submodel.id: SubModelEngine(
                    bundle.model_path(submodel.model),
                    channels=manifest.preprocessing.channels,
                    image_size=manifest.preprocessing.image_size,
                    feature_dim=submodel.feature_dim,
                    threads=threads,
                )
                for submodel in manifest.submodels
            }
            self._fusion = FusionEngine(bundle.model_path(manifest.fusion.model), manifest, threads=threads)
        except ModelError as error:
            raise BundleError(f"{bundle.path}: {error}") from None

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str as well, and is taken for a path
        self, source: File, *, absent: Collection[int] = ()
    ) -> Answer: ...

    @overload
    def predict(self, source: Sequence[Source], *, absent: Collection[int] = ()) -> Prediction: ...

    @overload
    def predict(self, source: UInt8, *, absent: Collection[int] = ()) -> Answer | Prediction: ...

    def predict(self, source: Source | Sequence[Source], *, absent: Collection[int] = ()) -> Answer | Prediction:
        """Classify one image or sound, or a batch of them; an answer does not depend on what else is in the batch.

        Args:
            source: one image or sound as its path, the bytes of its file, a PIL image, or a uint8 array
                `[channels, height, width]` of the model's own shape; or a batch as a list of these, or as one uint8
                array `[batch, channels, height, width]`.
            absent: answer as if the sub-models with these ids were lost.

        Returns:
            An `Answer` for one, a `Prediction` for a batch.

        Raises:
            DataError: a file cannot be read.
            ImageError: a file cannot be decoded (SoundError for sounds), or an array has another shape or dtype.
        """
        how = self._preprocessing
        if isinstance(source, np.ndarray):
            is_batch = source.ndim == 4 and len(source) > 0
            check_array(source, (len(source), *how.shape) if is_batch else how.shape, how)
            return self.run(source, absent=absent) if is_batch else self._one(source, absent)
        if isinstance(source, Sequence) and not isinstance(source, (str, *BYTES)):
            if not source:
                raise ImageError(f"the list is empty: give at least one {what(how)}")
            return self.run(np.stack([to_array(one, how) for one in source]), absent=absent)
        return self._one(to_array(source, how), absent)

    def _one(self, image: UInt8, absent: Collection[int]) -> Answer:
        return self.run(image[None], absent=absent).answers[0]

    def run(self, images: UInt8, *, absent: Collection[int] = ()) -> Prediction:
        """As `predict`, of a batch alone: uint8 `[batch, channels, height, width]`.

        Raises:
            ImageError: the array has another shape or dtype.
        """
        check_images(images, self._preprocessing.shape)
        start = time.perf_counter()
        features: dict[int, Float32] = {}
        runs = [0.0]
        for submodel, engine in self._submodels.items():
            if submodel not in absent:
                began = time.perf_counter()
                features[submodel] = engine.run_in_chunks(images)
                runs.append(time.perf_counter() - began)
        gathered = time.perf_counter()
        logits = self._fusion.run(features, len(images))
        end = time.perf_counter()
        missing = tuple(sorted(set(self._submodels) & set(absent)))
        return Prediction(
            logits=logits,
            classes=self._manifest.data.classes,
            missing=missing,
            missing_classes=self._manifest.classes_of(missing),
            unknown_below=self._unknown_below,
            timings=Timings(
                total_s=end - start, gather_s=gathered - start, slowest_run_s=max(runs), fuse_s=end - gathered
            ),
        )
