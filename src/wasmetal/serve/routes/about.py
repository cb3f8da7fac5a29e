"""``/health``, ``/metrics`` and ``/v1/models``: what the server is and does."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.serve.body import engine_of
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError, draining


async def health(request: Request) -> Response:
    """Whether requests are taken."""
    if engine_of(request).admission.draining:
        raise draining()
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(engine_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """The models that there are."""
    engine = engine_of(request)
    return JSONResponse({"object": "list", "data": [_model(engine, name) for name in engine.names]})


async def model(request: Request) -> Response:
    """One of them."""
    engine, name = engine_of(request), request.path_params["name"]
    if name not in engine.names:
        raise ApiError(404, f"there is no model {name!r}", param="model", code="model_not_found")
    return JSONResponse(_model(engine, name))


def _model(engine: Engine, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": engine.started, "owned_by": "wasmetal"}
