"""ONNX Runtime sessions: one for a sub-model, one for the fusion, and a whole bundle in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edvit.bundle import Bundle, Manifest
from edvit.errors import BundleError, ConfigError, DeadlineError, ImageError, ModelError
from edvit.runtime.prediction import Float32, Prediction, Timings, UInt8

CHUNK = 32
"""Images that one run takes. More are not faster, need more memory, and hold a device past its deadline."""


class SubModelEngine:
    """One sub-model, ready to run. Thread-safe.

    Args:
        path: its ONNX file.
        channels, image_size: what its input must be, uint8 `[batch, channels, image_size, image_size]`.
        feature_dim: what its output must be, float32 `[batch, feature_dim]`.
        threads: CPU threads of one run.

    Raises:
        ModelError: the file is no usable ONNX model, or has other inputs or outputs.
    """

    def __init__(self, path: Path, *, channels: int, image_size: int, feature_dim: int, threads: int = 1) -> None:
        self._shape = (channels, image_size, image_size)
        self._feature_dim = feature_dim
        self._session = open_session(path, threads)
        _check_values("input", self._session.get_inputs(), {"image": ("tensor(uint8)", self._shape)})
        _check_values("output", self._session.get_outputs(), {"feature": ("tensor(float)", (feature_dim,))})
        # The first run allocates and picks kernels: it must not be a user's.
        self.run(np.zeros((1, *self._shape), np.uint8))

    def run(self, images: UInt8) -> Float32:
        """uint8 `[batch, channels, size, size]` -> feature, float32 `[batch, feature_dim]`.

        Raises:
            ImageError: the images have another shape or dtype.
            ModelError: the graph gave something else than it declares.
        """
        check_images(images, self._shape)
        (feature,) = self._session.run(["feature"], {"image": images}, _run_options(len(images)))
        if feature.shape != (len(images), self._feature_dim) or feature.dtype != np.float32:
            raise ModelError("a sub-model's output is not of the shape it declares; build the bundle again")
        result: Float32 = feature
        return result

    def run_in_chunks(self, images: UInt8, *, until: float = math.inf) -> Float32:
        """As `run`, `CHUNK` images at a time.

        The last bits of a feature may depend on how many images are run together: whoever compares features takes this.

        Args:
            until: by `time.monotonic()`, seconds; past it no further chunk is started.

        Raises:
            DeadlineError: `until` has passed.
        """
        chunks = []
        for start in range(0, max(1, len(images)), CHUNK):  # at least one, which refuses an empty batch
            if time.monotonic() > until:
                raise DeadlineError("the deadline has passed before every image was run")
            chunks.append(self.run(images[start : start + CHUNK]))
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


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
        _check_values("input", self._session.get_inputs(), inputs)
        outputs = {"logits": ("tensor(float)", (len(manifest.data.classes),))}
        _check_values("output", self._session.get_outputs(), outputs)
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
        inputs = {"features": joined, "present": present}
        (logits,) = self._session.run(["logits"], inputs, _run_options(batch))
        result: Float32 = logits
        return result


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


def check_images(images: UInt8, shape: tuple[int, int, int]) -> None:
    """Raises ImageError unless `images` is uint8 `[batch, *shape]` with at least one image."""
    if images.dtype != np.uint8:
        raise ImageError(f"images must be uint8, not {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        wanted = ", ".join(map(str, shape))
        raise ImageError(f"images must have the shape [batch, {wanted}], not {list(images.shape)}")


def open_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the CPU with the settings of a device.

    Raises:
        ConfigError: fewer than one thread.
        ModelError: the file is no usable ONNX model.
    """
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Devices are small: no plan of buffers kept per batch size, no threads that spin between two requests.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common class, and their text is of many lines.
        raise ModelError(f"{path.name}: ONNX Runtime cannot load it ({type(error).__name__})") from None


def _run_options(batch: int) -> Any:
    """The arena keeps what one image needs, which is faster; what a batch needed more goes back afterwards."""
    if batch == 1:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _check_values(kind: str, values: list[Any], expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """The first axis is the batch, of any length."""
    if sorted(value.name for value in values) != sorted(expected):
        raise ModelError(f"the model's {kind}s are not {', '.join(expected)}")
    for value in values:
        dtype, shape = expected[value.name]
        if value.type != dtype or len(value.shape) != len(shape) + 1 or tuple(value.shape[1:]) != shape:
            raise ModelError(f"{kind} {value.name!r} is {value.type} {value.shape}, not {dtype} [batch, {shape}]")
        if isinstance(value.shape[0], int):
            raise ModelError(f"{kind} {value.name!r} has a fixed batch size of {value.shape[0]}")
