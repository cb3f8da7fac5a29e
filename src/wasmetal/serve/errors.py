"""Errors, as clients of OpenAI's API expect them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.errors import printable

log = logging.getLogger("wasmetal.serve")


class ApiError(Exception):
    """What a client gets instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }

    def response(self) -> Response:
        """It as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is wrong, and ``param`` is the field that is."""
    return ApiError(400, message, param=param, code=code)


def overloaded(seconds: int) -> ApiError:
    """Too many requests wait: come back after so many seconds."""
    return ApiError(
        429,
        f"the server is busy, and its queue is full; try again in {seconds} s",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def draining() -> ApiError:
    """The server is about to end."""
    return ApiError(
        503,
        "the server is shutting down",
        kind="server_error",
        code="shutting_down",
        headers={"Retry-After": "5", "Connection": "close"},
    )


def failed(message: str) -> ApiError:
    """A guest failed, or the device."""
    return ApiError(500, f"the completion failed: {printable(message)}", kind="server_error", code="completion_failed")


def invalid(error: ValidationError) -> ApiError:
    """What pydantic says of a body: its first complaint, with the field's path."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith("("))
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown or unsupported parameter: {printable(path)}", printable(path), "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"missing required parameter: {path}", path, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return bad_request(f"{printable(path)}: {message}" if path else message, printable(path) or None, "invalid_value")


async def on_api_error(request: Request, error: Exception) -> Response:
    """For Starlette."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """For Starlette: no such path, or method."""
    assert isinstance(error, HTTPException)
    message = {404: "there is no such path here", 405: "this path does not take that method"}
    said = message.get(error.status_code, error.detail)
    return ApiError(error.status_code, said, headers=error.headers).response()


async def on_bug(request: Request, error: Exception) -> Response:
    """For Starlette: anything that nobody thought of. The log has the rest."""
    return ApiError(500, "internal error", kind="server_error").response()


HANDLERS = {ApiError: on_api_error, HTTPException: on_http_error, Exception: on_bug}
