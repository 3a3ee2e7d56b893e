"""The HTTP API: `POST /predict`, `GET /health`, `GET /fleet`, and their OpenAPI page at `/docs`.

Its routes live on one router, so that another protocol can be mounted beside it on the same predictor.
"""

from __future__ import annotations

import asyncio
import io
import time
import wave
from functools import partial
from typing import Any, Literal, Protocol

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from edvit.bundle import Manifest
from edvit.errors import DeadlineError, EdvitError, SlowUploadError, UnavailableError
from edvit.inputs.preprocess import Preprocessing, UInt8, decode_file
from edvit.runtime.gateway.reconcile import DeviceStatus
from edvit.runtime.http.answers import (
    AnswerTimings,
    DeviceAnswer,
    ErrorAnswer,
    ErrorDetail,
    FleetAnswer,
    HealthAnswer,
    Predicted,
    PredictedBatch,
)
from edvit.runtime.http.body import NPY, read_images
from edvit.runtime.http.upload import MAX_BODY_BYTES, Upload, discard_body, read_upload
from edvit.runtime.prediction import Prediction

WORKERS = 16
"""Requests worked on at once; each mostly waits for devices. More wait their turn, without blocking `/health`."""

MAX_REQUESTS = 64
"""Predictions under way or waiting; more are refused, or their bodies would fill the memory."""

NAMED_STRANGERS = 20
"""Devices outside the fleet that `/fleet` names."""


class Predictor(Protocol):
    """What the API serves; a `Gateway` is one."""

    @property
    def longest_s(self) -> float:
        """No prediction may take longer, seconds."""
        ...

    def predict(self, images: UInt8, *, since: float | None = None) -> Prediction: ...

    def devices(self) -> tuple[DeviceStatus, ...]: ...


def create_app(predictor: Predictor, manifest: Manifest) -> FastAPI:
    """The application. Thread-safe as far as `predictor` is."""
    from edvit import __version__

    _warm_up(manifest.preprocessing)
    # A fleet's network need not reach the internet, where FastAPI's own page has its script from.
    app = FastAPIOffline(
        redoc_url=None,
        title="edvit gateway",
        version=__version__,
        description="Predictions by a fleet of edge devices.",
    )
    app.include_router(_router(predictor, manifest))
    app.add_exception_handler(EdvitError, _on_edvit_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_defect)
    return app


def _warm_up(how: Preprocessing) -> None:
    """Decoders are loaded when they are first needed: not while a user waits; and where one is missing, say so now."""
    file = io.BytesIO()
    if how.spectrogram is None:
        Image.new("RGB", (8, 8)).save(file, format="JPEG")
    else:
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, how.spectrogram.sample_rate, 0, "NONE", ""))
            sound.writeframes(bytes(1000))
    decode_file(file.getvalue(), how)


def _router(predictor: Predictor, manifest: Manifest) -> APIRouter:
    router = APIRouter(responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}})
    workers = CapacityLimiter(WORKERS)
    places = asyncio.Semaphore(MAX_REQUESTS)

    @router.post("/predict", response_model=Predicted | PredictedBatch, openapi_extra=_request_body(manifest))
    async def predict(request: Request) -> Response:
        """Classify one image or sound, or a batch given as an array."""
        if places.locked():
            await discard_body(request)
            raise UnavailableError(f"{MAX_REQUESTS} requests are waiting already: try again in a moment")
        async with places:
            upload = await read_upload(request)
            start = time.perf_counter()
            # One hop to a worker thread for all of it: decoding and waiting for devices would stall the event loop.
            work = partial(_predict, predictor, manifest, upload, start)
            try:
                # Only the wait for a worker can be cut off; the rest keeps to the deadline by itself.
                with anyio.fail_after(predictor.longest_s):
                    answer = await anyio.to_thread.run_sync(work, limiter=workers)
            except TimeoutError:
                raise DeadlineError(
                    f"every worker was busy for {predictor.longest_s:g} s: try again in a moment"
                ) from None
            return _json(answer)

    @router.get("/health", response_model=HealthAnswer)
    async def health() -> Response:
        """200 while predictions are possible, though they may be degraded; else 503."""
        answer = health_of(manifest, predictor.devices())
        return _json(answer, status=503 if answer.status == "not-ready" else 200)

    @router.get("/fleet", response_model=FleetAnswer)
    async def fleet() -> Response:
        """The devices, and what each of them holds."""
        return _json(fleet_of(manifest, predictor.devices()))

    return router


# --- POST /predict -----------------------------------------------------------------------------------------


def _predict(predictor: Predictor, manifest: Manifest, upload: Upload, start: float) -> Predicted | PredictedBatch:
    images, is_batch = read_images(upload.data, upload.media_type, manifest.preprocessing)
    decoded = time.perf_counter()
    prediction = predictor.predict(images, since=start)
    timings = AnswerTimings(
        total_ms=_ms(time.perf_counter() - start),
        decode_ms=_ms(decoded - start),
        gather_ms=_ms(prediction.timings.gather_s),
        fuse_ms=_ms(prediction.timings.fuse_s),
        slowest_run_ms=_ms(prediction.timings.slowest_run_s),
    )
    if is_batch:
        return PredictedBatch(
            predictions=prediction.images,
            degraded=prediction.degraded,
            missing=prediction.missing,
            missing_classes=prediction.missing_classes,
            timings=timings,
        )
    (answer,) = prediction.answers
    return Predicted(**dict(answer), timings=timings)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# --- GET /health, GET /fleet -------------------------------------------------------------------------------


def health_of(manifest: Manifest, devices: tuple[DeviceStatus, ...]) -> HealthAnswer:
    """Which sub-models no device that is online holds."""
    held = {submodel for device in devices if device.alive for submodel in device.submodels}
    missing = tuple(submodel.id for submodel in manifest.submodels if submodel.id not in held)
    status: Literal["ready", "degraded", "not-ready"] = "degraded"
    if not missing:
        status = "ready"
    elif len(missing) == len(manifest.submodels):
        status = "not-ready"
    return HealthAnswer(
        status=status,
        submodels=len(manifest.submodels),
        missing=missing,
        missing_classes=manifest.classes_of(missing),
    )


def fleet_of(manifest: Manifest, devices: tuple[DeviceStatus, ...]) -> FleetAnswer:
    """What each device holds and should hold."""
    strangers = [device.name for device in devices if not device.in_fleet]
    return FleetAnswer(
        name=manifest.plan.fleet.name,
        classes=manifest.data.classes,
        devices=tuple(
            DeviceAnswer(
                name=device.name,
                online=device.alive,
                state=device.state,
                submodels=device.submodels,
                planned=device.planned,
                memory_bytes=device.memory_bytes,
                memory_limit_bytes=device.memory_limit_bytes,
                host=device.host,
                problem=device.problem,
            )
            for device in devices
            if device.in_fleet
        ),
        strangers=tuple(strangers[:NAMED_STRANGERS]),
        strangers_count=len(strangers),
    )


# --- errors ------------------------------------------------------------------------------------------------


def _json(answer: BaseModel, status: int = 200) -> Response:
    # Straight from pydantic: FastAPI would validate and encode what is already validated.
    return Response(answer.model_dump_json(), status_code=status, media_type="application/json")


def _error(status: int, code: str, message: str) -> Response:
    return _json(ErrorAnswer(error=ErrorDetail(code=code, message=message)), status)


async def _on_edvit_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EdvitError)
    response = _error(error.http_status, error.code, str(error))
    if isinstance(error, SlowUploadError):
        response.headers["connection"] = "close"  # the rest of the body may still come, and is no new request
    return response


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "method-not-allowed"}
    return _error(error.status_code, codes.get(error.status_code, "bad-request"), f"{error.detail}; see /docs")


async def _on_defect(_: Request, error: Exception) -> Response:
    return _error(500, EdvitError.code, "internal error; the gateway's log has the detail")


def _request_body(manifest: Manifest) -> dict[str, Any]:
    """The OpenAPI description of the bodies that `/predict` takes."""
    how = manifest.preprocessing
    shape = list(how.shape)
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {"file": {**file, "description": f"{how.takes} file"}},
        "required": ["file"],
    }
    array = {**file, "description": f"numpy.save of a uint8 array {shape} or [batch, {str(shape)[1:]}"}
    content = {"multipart/form-data": form, how.media_type: file, NPY: array}
    limit = f"At most {MAX_BODY_BYTES:,} bytes."
    return {
        "requestBody": {
            "required": True,
            "description": limit,
            "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
        }
    }
