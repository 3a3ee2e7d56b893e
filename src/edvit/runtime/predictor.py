"""A whole bundle in one process."""

from __future__ import annotations

import time
from collections.abc import Collection

from edvit.bundle import Bundle
from edvit.errors import BundleError, ModelError
from edvit.runtime.engine.fusion import FusionEngine
from edvit.runtime.engine.submodel import SubModelEngine, check_images
from edvit.runtime.prediction import Float32, Prediction, Timings, UInt8


class LocalPredictor:
    """A whole bundle in one process: what predictions over the network must equal exactly. Thread-safe.

    Args:
        bundle: a verified bundle.
        threads: CPU threads of one run.

    Raises:
        BundleError: a model of the bundle is unusable.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        self._shape = manifest.preprocessing.shape
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

    def predict(self, images: UInt8, *, absent: Collection[int] = ()) -> Prediction:
        """uint8 `[batch, channels, size, size]` -> the fused answer, as if the sub-models in `absent` were lost.

        Raises:
            ImageError: the images have another shape or dtype.
        """
        check_images(images, self._shape)
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
        return Prediction(
            logits=logits,
            missing=tuple(sorted(set(self._submodels) & set(absent))),
            timings=Timings(
                total_s=end - start, gather_s=gathered - start, slowest_run_s=max(runs), fuse_s=end - gathered
            ),
        )
