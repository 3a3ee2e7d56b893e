"""The HTTP API: `POST /predict`, `GET /health`, `GET /fleet`, `/deploy`, and their OpenAPI page at `/docs`.

Its routes live on one router, so that another protocol can be mounted beside it on the same predictor.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from edvit.bundle import Manifest
from edvit.errors import DeadlineError, EdvitError, OverloadedError, SlowUploadError
from edvit.inputs.preprocess import UInt8
from edvit.runtime.deploy.routes import deploy_router
from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.hedging import CopiesAsked
from edvit.runtime.http.answers import (
    AnswerTimings,
    CopiesAskedAnswer,
    DeviceAnswer,
    ErrorAnswer,
    ErrorDetail,
    FleetAnswer,
    HealthAnswer,
    Predicted,
    PredictedBatch,
)
from edvit.runtime.http.body import NPY
from edvit.runtime.http.pace import Pace
from edvit.runtime.http.places import Places
from edvit.runtime.http.upload import MAX_BODY_BYTES
from edvit.runtime.http.uploads import Uploads, client_of
from edvit.runtime.prediction import Prediction
from edvit.runtime.request import note

if TYPE_CHECKING:
    from edvit.runtime.deploy.deploys import Deploys

WORKERS = 16
"""Requests worked on at once; each mostly waits for devices. More wait their turn, without blocking `/health`."""

WAIT = 0.4
"""The share of the longest deadline for which a request may wait, for a decoder and for its turn, while answers take
too long (`Pace`). After a longer wait the devices would not answer it in time, and what they do for it would be lost to
others."""

MAX_REQUESTS = 80
"""Predictions under way or waiting; more are refused, those of the client first that has the most."""

RETRY_AFTER_S = {429: 1, 503: 5, OverloadedError.code: 1}
"""Seconds after which to ask again, by an error's status or code: too much is over sooner than a device is back."""

NAMED_STRANGERS = 20
"""Devices outside the fleet that `/fleet` names."""


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
"""The OpenAPI description of what is refused."""


class Predictor(Protocol):
    """What the API serves; a `Gateway` is one."""

    @property
    def longest_s(self) -> float:
        """No prediction may take longer, seconds."""
        ...

    @property
    def replicas(self) -> int:
        """Devices on which each sub-model is kept, where there is room."""
        ...

    @property
    def copies_asked(self) -> CopiesAsked:
        """How many times second copies were asked."""
        ...

    def predict(self, images: UInt8, *, since: float | None = None) -> Prediction: ...

    def devices(self) -> tuple[DeviceStatus, ...]: ...


def create_app(predictor: Predictor, manifest: Manifest, uploads: Uploads, deploys: Deploys | None = None) -> FastAPI:
    """The application. Thread-safe as far as `predictor` is.

    Args:
        uploads: reads what requests ask about; the caller closes it once the application serves no more.
        deploys: takes new bundles; None where none are taken.
    """
    from edvit import __version__

    # A fleet's network need not reach the internet, where FastAPI's own page has its script from.
    app = FastAPIOffline(
        redoc_url=None,
        title="edvit gateway",
        version=__version__,
        description="Predictions by a fleet of edge devices.",
    )
    app.include_router(_router(predictor, manifest, uploads))
    app.include_router(deploy_router(deploys), responses=ERRORS)
    app.add_exception_handler(EdvitError, _on_edvit_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_defect)
    return app


def _router(predictor: Predictor, manifest: Manifest, uploads: Uploads) -> APIRouter:
    router = APIRouter(responses=ERRORS)
    workers = CapacityLimiter(WORKERS)
    places, pace = Places(WORKERS, MAX_REQUESTS - WORKERS), Pace(WORKERS)

    @router.post("/predict", response_model=Predicted | PredictedBatch, openapi_extra=_request_body(manifest))
    async def predict(request: Request) -> Response:
        """Classify one image or sound, or a batch given as an array."""
        client = client_of(request)
        # The first requests that meet a device which has just fallen silent wait until it is left alone.
        wait_s = (WAIT if pace.is_lowered else 1.0) * predictor.longest_s
        async with (
            uploads.read(request, client, wait_s) as (images, is_batch, start, waited_s),
            AsyncExitStack() as held,
        ):
            decoded = time.perf_counter()
            await _place(held, places, client, wait_s - waited_s)
            began, answered = time.perf_counter(), False
            # One hop to a worker thread: waiting for devices would stall the event loop.
            work = partial(predictor.predict, images, since=decoded - waited_s)
            try:
                prediction = await anyio.to_thread.run_sync(work, limiter=workers, abandon_on_cancel=True)
                answered = True
            finally:
                took_s = time.perf_counter() - began
                if not answered or len(images) == 1:  # a batch may take long by itself, however little else there is
                    places.resize(pace.after(took_s, predictor.longest_s, answered=answered))
            note(degraded=prediction.degraded, missing=prediction.missing)
            return _json(_answer(prediction, is_batch, start, decoded))

    @router.get("/health", response_model=HealthAnswer)
    async def health() -> Response:
        """200 while predictions are possible, though they may be degraded; else 503."""
        answer = health_of(manifest, predictor.devices(), predictor.replicas)
        return _json(answer, status=503 if answer.status == "not-ready" else 200)

    @router.get("/fleet", response_model=FleetAnswer)
    async def fleet() -> Response:
        """The devices, and what each of them holds."""
        return _json(fleet_of(manifest, predictor.devices(), predictor.replicas, predictor.copies_asked))

    return router


# --- POST /predict -----------------------------------------------------------------------------------------


async def _place(held: AsyncExitStack, places: Places, client: str, wait_s: float) -> None:
    """Wait for a place; a request that has not got one in time for the devices to answer is told so."""
    try:
        with anyio.fail_after(wait_s):
            await held.enter_async_context(places.place(client))
    except TimeoutError:
        raise DeadlineError(f"every worker was busy for {wait_s:.2g} s: try again in a moment") from None


def _answer(prediction: Prediction, is_batch: bool, start: float, decoded: float) -> Predicted | PredictedBatch:
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


def health_of(manifest: Manifest, devices: tuple[DeviceStatus, ...], replicas: int = 1) -> HealthAnswer:
    """Which sub-models no device that is online holds, and which fewer than `replicas` do."""
    held = Counter(submodel for device in devices if device.alive for submodel in device.submodels)
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
        without_copy=tuple(submodel.id for submodel in manifest.submodels if 0 < held[submodel.id] < replicas),
    )


def fleet_of(
    manifest: Manifest,
    devices: tuple[DeviceStatus, ...],
    replicas: int = 1,
    copies_asked: CopiesAsked | None = None,
) -> FleetAnswer:
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
                copies=device.copies,
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
        replicas=replicas,
        copies_asked=CopiesAskedAnswer(**asdict(copies_asked or CopiesAsked())),
    )


# --- errors ------------------------------------------------------------------------------------------------


def _json(answer: BaseModel, status: int = 200) -> Response:
    # Straight from pydantic: FastAPI would validate and encode what is already validated.
    return Response(answer.model_dump_json(), status_code=status, media_type="application/json")


def _error(status: int, code: str, message: str) -> Response:
    return _json(ErrorAnswer(error=ErrorDetail(code=code, message=message)), status)


async def _on_edvit_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EdvitError)
    note(code=error.code)
    response = _error(error.http_status, error.code, str(error))
    retry_after_s = RETRY_AFTER_S.get(error.code, RETRY_AFTER_S.get(error.http_status))
    if retry_after_s is not None:
        response.headers["retry-after"] = str(retry_after_s)
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
