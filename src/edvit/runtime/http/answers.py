"""What the HTTP API answers, as JSON: shared by the server, its OpenAPI page and the client."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from edvit.runtime.prediction import Answer, Completeness, ImageAnswer


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class AnswerTimings(_Answer):
    """Where the time went, milliseconds."""

    total_ms: float
    """From the last byte of the request to the answer."""
    decode_ms: float
    """Reading, resizing."""
    gather_ms: float
    """From the fan-out to the last feature, network included."""
    fuse_ms: float
    slowest_run_ms: float
    """The slowest sub-model's own run on its device."""


class Predicted(Answer):
    """The answer for one image or one sound."""

    timings: AnswerTimings


class PredictedBatch(Completeness):
    """The answer for an array `[batch, channels, height, width]`."""

    predictions: tuple[ImageAnswer, ...]
    timings: AnswerTimings


class DeviceAnswer(_Answer):
    """One device of the fleet."""

    name: str
    online: bool
    """Whether it is there and answers."""
    state: Literal["offline", "silent", "loading", "ready", "refused"]
    """`silent`: the network says that it is there, but it does not answer; it is probed. `refused`: it refuses what
    is planned."""
    submodels: tuple[int, ...]
    """What it holds now."""
    copies: tuple[int, ...] = ()
    """What it holds as a second copy: the first copy is on another device."""
    planned: tuple[int, ...]
    """What the plan places on it."""
    memory_bytes: int
    """What the sub-models it holds take, as the plan counts it."""
    memory_limit_bytes: int | None
    """The smaller of its limit in the fleet and the one it was started with."""
    host: str | None
    problem: str | None
    """Why it does not hold what is planned."""


class CopiesAskedAnswer(_Answer):
    """How many times second copies were asked, since the gateway started."""

    late: int = 0
    """A device was late."""
    ended: int = 0
    """A device ended a request without an answer, answered wrongly, or was given up."""


class FleetAnswer(_Answer):
    name: str
    classes: tuple[str, ...]
    """Class names, in the order of their indices."""
    devices: tuple[DeviceAnswer, ...]
    strangers: tuple[str, ...] = ()
    """Names of devices that are there without being in the fleet; at most twenty."""
    strangers_count: int = 0
    """How many there are, up to a thousand."""
    replicas: int = 1
    """Devices on which each sub-model is kept, where there is room."""
    copies_asked: CopiesAskedAnswer = CopiesAskedAnswer()


class HealthAnswer(_Answer):
    """`ready`: every sub-model answers. `degraded`: some do. `not-ready`: none does, and `/predict` will not either."""

    status: Literal["ready", "degraded", "not-ready"]
    submodels: int
    missing: tuple[int, ...]
    missing_classes: tuple[str, ...] = ()
    """The classes of the missing sub-models."""
    without_copy: tuple[int, ...] = ()
    """With `--replicas 2`, sub-models that one device alone holds: if it goes, answers are degraded for a while."""


class ErrorDetail(_Answer):
    code: str
    message: str


class ErrorAnswer(_Answer):
    """Every answer with a 4xx or 5xx status."""

    error: ErrorDetail


class DeployAnswer(_Answer):
    """The deploy that is under way, or the last one."""

    serving: str
    """Digest of the bundle that the gateway answers with."""
    state: Literal["none", "under-way", "done", "failed"] = "none"
    id: str | None = None
    """Drawn at random for each deploy."""
    bundle: str | None = None
    """Digest of the new bundle."""
    steps: tuple[str, ...] = ()
    """What has been done so far, one line each."""
    error: ErrorDetail | None = None
    """Why it has failed."""
