"""One sub-model, ready to run."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from edvit.errors import DeadlineError, ImageError, ModelError
from edvit.runtime.engine.session import check_values, open_session
from edvit.runtime.prediction import Float32, UInt8
from edvit.shape.image import ImageSize

CHUNK = 32
"""Images that one run takes. More are not faster, need more memory, and hold a device past its deadline."""


class SubModelEngine:
    """One sub-model, ready to run. Thread-safe.

    Args:
        path: its ONNX file.
        channels, image_size: what its input must be, uint8 `[batch, channels, height, width]`; one number is a square.
        feature_dim: what its output must be, float32 `[batch, feature_dim]`.
        threads: CPU threads of one run.

    Raises:
        ModelError: the file is no usable ONNX model, or has other inputs or outputs.
    """

    def __init__(
        self, path: Path, *, channels: int, image_size: ImageSize | int, feature_dim: int, threads: int = 1
    ) -> None:
        self._shape = (channels, *ImageSize.of(image_size))
        self._feature_dim = feature_dim
        self._session = open_session(path, threads)
        check_values("input", self._session.get_inputs(), {"image": ("tensor(uint8)", self._shape)})
        check_values("output", self._session.get_outputs(), {"feature": ("tensor(float)", (feature_dim,))})
        # The first run allocates and picks kernels: it must not be one that a user waits for.
        self.run(np.zeros((1, *self._shape), np.uint8))

    def run(self, images: UInt8) -> Float32:
        """uint8 `[batch, channels, height, width]` -> feature, float32 `[batch, feature_dim]`.

        Raises:
            ImageError: the images have another shape or dtype.
            ModelError: the graph gave something else than it declares.
        """
        check_images(images, self._shape)
        (feature,) = self._session.run(["feature"], {"image": images})
        if feature.shape != (len(images), self._feature_dim) or feature.dtype != np.float32:
            raise ModelError("a sub-model's output has another shape than the model declares; build the bundle again")
        result: Float32 = feature
        return result

    def run_in_chunks(self, images: UInt8, *, until: float = math.inf) -> Float32:
        """Run as `run` does, `CHUNK` images at a time.

        The last bits of a feature may depend on how many images run together, so features that are compared come from
        this method.

        Args:
            until: `time.monotonic()` after which no further chunk is started, seconds.

        Raises:
            DeadlineError: `until` has passed.
        """
        chunks = []
        for start in range(0, max(1, len(images)), CHUNK):  # at least one, which refuses an empty batch
            if time.monotonic() > until:
                raise DeadlineError("the deadline passed before every image was run")
            chunks.append(self.run(images[start : start + CHUNK]))
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def check_images(images: UInt8, shape: tuple[int, int, int]) -> None:
    """Raises ImageError unless `images` is uint8 `[batch, *shape]` with at least one image."""
    if images.dtype != np.uint8:
        raise ImageError(f"the array must be uint8, not {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        wanted = ", ".join(map(str, shape))
        raise ImageError(f"the array must have the shape [batch, {wanted}], not {list(images.shape)}")
