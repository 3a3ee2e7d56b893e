"""What devices and the gateway say to each other: a header for each message, and arrays as payloads."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from edvit.runtime.wire.header import Header
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES
from edvit.shape.image import ImageSize
from edvit.validation import NAME_PATTERN

MAX_BATCH = 1024
"""Images of one request. Bytes alone are no limit: 312,500 images of 8x8 pixels fit into the largest HTTP body, and
each of them costs features and an answer of some kilobytes, whatever its size."""
BLOB_CHUNK_BYTES = 1024 * 1024

_SHA256 = r"^[0-9a-f]{64}$"
_INSTANCE = r"^[0-9a-f]{16}$"
_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


class ArrayHeader(Header):
    """A header whose payload is one C-ordered little-endian array."""

    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...] = Field(min_length=1, max_length=4)

    @field_validator("shape")
    @classmethod
    def _lengths_are_positive(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if min(shape) < 1:
            raise ValueError("every length must be at least 1")
        return shape

    @property
    def payload_bytes(self) -> int:
        return math.prod(self.shape) * int(_DTYPES[self.dtype].itemsize)


# --- what a device is, and what it shall hold --------------------------------------------------------------


class InfoRequest(Header):
    """Asks a device what it is and holds."""


class SubModelSpec(Header):
    """One sub-model that a device shall hold."""

    id: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(gt=0)
    """Size of its ONNX file."""
    memory_bytes: int = Field(gt=0)
    """What it counts against the memory limit: `peak_memory_bytes` of the manifest."""
    channels: int = Field(gt=0)
    image_size: ImageSize
    feature_dim: int = Field(gt=0)


class GatewayRequest(Header):
    """Asks a gateway what it is and serves."""


class GatewayInfo(Header):
    """What a gateway is and serves."""

    instance: str = Field(pattern=_INSTANCE)
    """Drawn at random when the gateway starts."""
    host: str = Field(max_length=256)
    pid: int = Field(gt=0)
    bundle: str = Field(pattern=_SHA256)
    age_s: float = Field(ge=0)
    """Seconds since it started; clocks of different machines are never compared."""


class LoadRequest(Header):
    """The sub-models a device shall hold: it drops all others but those of `beside`, and loads what it lacks."""

    gateway: str = Field(pattern=_INSTANCE)
    """The gateway that tells it. A device refuses another bundle while the gateway that told it last is there."""
    gateway_host: str = Field(max_length=256)

    instance: str = Field(pattern=_INSTANCE)
    """The process that is meant; another one of the same name refuses."""
    bundle: str = Field(pattern=_SHA256)
    """Digest of the bundle: features of different bundles never mix."""
    submodels: tuple[SubModelSpec, ...] = Field(max_length=1024)
    beside: tuple[Annotated[str, Field(pattern=_SHA256)], ...] = Field(default=(), max_length=4)
    """Digests of other bundles: what the device holds of these stays as it is, and counts against the limit."""
    memory_limit_bytes: int | None = Field(default=None, gt=0)
    deadline_s: float = Field(gt=0)
    """Seconds from arrival; clocks of different machines are never compared."""

    @field_validator("submodels")
    @classmethod
    def _ids_are_unique(cls, submodels: tuple[SubModelSpec, ...]) -> tuple[SubModelSpec, ...]:
        if len({submodel.id for submodel in submodels}) != len(submodels):
            raise ValueError("a sub-model is named twice")
        return submodels


class RefuseRequest(Header):
    """Tells a device that its name is taken by another one, which answers; it ends."""

    instance: str = Field(pattern=_INSTANCE)


class RefuseReply(Header):
    """The refused device has understood."""


class HeldSubModel(Header):
    """One sub-model that a device holds."""

    bundle: str = Field(pattern=_SHA256)
    """Digest of the bundle that it is of; a device may hold sub-models of two while a new bundle is deployed."""
    id: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)
    memory_bytes: int = Field(gt=0)


class DeviceInfo(Header):
    """What a device is and holds; the answer to `InfoRequest` and to `LoadRequest`."""

    device: str = Field(pattern=NAME_PATTERN)
    instance: str = Field(pattern=_INSTANCE)
    """Drawn at random when the process starts."""
    version: str = Field(max_length=64)
    host: str = Field(max_length=256)
    pid: int = Field(gt=0)
    threads: int = Field(gt=0)
    submodels: tuple[HeldSubModel, ...] = Field(default=(), max_length=1024)
    memory_limit_bytes: int | None = Field(default=None, gt=0)

    @property
    def memory_bytes(self) -> int:
        """Memory of the sub-models it holds, as the plan counts it."""
        return sum(submodel.memory_bytes for submodel in self.submodels)

    def held(self, bundle: str) -> dict[int, str]:
        """The sha256 of each sub-model of one bundle that it holds, by id."""
        return {submodel.id: submodel.sha256 for submodel in self.submodels if submodel.bundle == bundle}

    def memory_bytes_beside(self, bundle: str) -> int:
        """Memory of the sub-models of all other bundles."""
        return sum(submodel.memory_bytes for submodel in self.submodels if submodel.bundle != bundle)


# --- inference ---------------------------------------------------------------------------------------------


class InferRequest(ArrayHeader):
    """Images; payload uint8 `[batch, channels, height, width]`, encoded as `encoding` says."""

    dtype: Literal["uint8"] = "uint8"
    shape: tuple[int, ...] = Field(min_length=4, max_length=4)
    encoding: ImageEncoding = "raw"
    encoded_bytes: int | None = Field(default=None, gt=0)
    """Size of the payload; None for raw, where the shape says it."""
    bundle: str = Field(pattern=_SHA256)
    request: str = Field(pattern=_INSTANCE)
    """Drawn at random; the answers repeat it, so that one to an earlier request is told apart."""
    submodels: tuple[int, ...] | None = Field(default=None, max_length=1024)
    """Those whose features are asked for; None for every one that the device holds."""
    deadline_s: float = Field(gt=0)
    """Seconds from arrival after which nobody waits for the answer."""

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> InferRequest:
        if self.shape[0] > MAX_BATCH:
            raise ValueError(f"at most {MAX_BATCH:,} images are accepted at once")
        if (self.encoding == "raw") != (self.encoded_bytes is None):
            raise ValueError("encoded images say their bytes, and only these")
        if self.encoding != "raw" and super().payload_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError("the images are too large once they are decoded")
        return self

    @property
    def payload_bytes(self) -> int:
        return super().payload_bytes if self.encoded_bytes is None else self.encoded_bytes


class InferReply(ArrayHeader):
    """One sub-model's features; payload float32 `[batch, feature_dim]`."""

    dtype: Literal["float32"] = "float32"
    shape: tuple[int, ...] = Field(min_length=2, max_length=2)
    request: str = Field(pattern=_INSTANCE)
    """That of the `InferRequest`."""
    submodel: int = Field(ge=0)
    device: str = Field(pattern=NAME_PATTERN)
    seconds: float = Field(ge=0)
    """The sub-model's own run time on the device."""


# --- model files -------------------------------------------------------------------------------------------


class BlobRequest(Header):
    """Asks for a part of a model file."""

    offset: int = Field(ge=0)
    length: int = Field(gt=0, le=BLOB_CHUNK_BYTES)


class BlobReply(Header):
    """A part of a model file; payload: `length` bytes from `offset`."""

    offset: int = Field(ge=0)
    length: int = Field(gt=0, le=BLOB_CHUNK_BYTES)

    @property
    def payload_bytes(self) -> int:
        return self.length


# --- arrays ------------------------------------------------------------------------------------------------


def to_payload(array: npt.NDArray[Any]) -> bytes:
    """The array as C-ordered little-endian bytes. Raises KeyError for a dtype the wire does not carry."""
    return np.ascontiguousarray(array, dtype=_DTYPES[array.dtype.name]).tobytes()


def to_array(header: ArrayHeader, payload: bytes) -> npt.NDArray[Any]:
    """A read-only array of `header.shape` over a payload that `decode` has checked."""
    return np.frombuffer(payload, dtype=_DTYPES[header.dtype]).reshape(header.shape)
