"""Reading the body of a request, within limits on size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError
from wasmetal.serve.schema import B, parse


def engine_of(request: Request) -> Engine:
    """The engine of the application."""
    engine: Engine = request.app.state.engine
    return engine


async def read(request: Request, kind: type[B]) -> B:
    """A request's body. Its model is loaded then, until the request has been answered. Raises ApiError.

    Only JSON that says so is taken: a browser asks before it sends that to another site, and is then refused.
    """
    limits = engine_of(request).limits
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body must be JSON, and the header Content-Type: application/json must say so")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                data += piece
                if len(data) > limits.body_bytes:
                    raise _too_large(limits.body_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(408, "the body ended early") from None
    body = parse(kind, bytes(data))
    release = await engine_of(request).shelf.take(getattr(body, "model", ""))
    request.scope["state"]["releases"].append(release)
    return body


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request has more than {most} bytes", headers={"Connection": "close"})
