"""`POST /deploy` and `GET /deploy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from edvit.errors import ConfigError, UnavailableError
from edvit.runtime.http.answers import DeployAnswer
from edvit.runtime.http.body import BUNDLE

if TYPE_CHECKING:
    from edvit.runtime.deploy.deploys import Deploys

TIMEOUT_S = 600.0
"""Seconds that devices may take to load a new bundle, unless the client says otherwise."""
LONGEST_S = 86_400.0


def deploy_router(deploys: Deploys | None) -> APIRouter:
    """The routes; with None they answer that this gateway takes no bundles."""
    router = APIRouter()

    def taking() -> Deploys:
        if deploys is None:
            raise UnavailableError("this gateway takes no new bundles: start `edvit serve` for one that does")
        return deploys

    @router.post("/deploy", status_code=202, response_model=DeployAnswer, openapi_extra=_openapi())
    async def deploy(request: Request) -> Response:
        """Take over a new bundle: see `edvit deploy`, which sends one. It is rolled out after the answer."""
        timeout_s = seconds(request.query_params.get("timeout_s"))
        answer = await taking().receive(request, timeout_s=timeout_s, check="check" in request.query_params)
        return Response(answer.model_dump_json(), 202 if answer.id else 200, media_type="application/json")

    @router.get("/deploy", response_model=DeployAnswer)
    async def deploy_state() -> Response:
        """The deploy that is under way, or the last one since the gateway started."""
        return Response(taking().answer().model_dump_json(), media_type="application/json")

    return router


def seconds(text: str | None) -> float:
    """How long devices may take. Raises ConfigError."""
    try:
        value = TIMEOUT_S if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LONGEST_S:
        raise ConfigError(f"timeout_s must be a number of seconds from 0 to {LONGEST_S:g}")
    return value


def _openapi() -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "description": "what `edvit deploy` sends"}
    described = {
        "timeout_s": ("number", "Seconds that devices may take to load it."),
        "check": ("boolean", "The body has the manifest alone: say whether the bundle would be taken."),
    }
    return {
        "requestBody": {"required": True, "content": {BUNDLE: {"schema": schema}}},
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": kind}, "description": text}
            for name, (kind, text) in described.items()
        ],
    }
