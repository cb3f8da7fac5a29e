"""``/openapi.json``: a description of the API, made of its routes and of the tables of its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wasmetal.serve.response_schema import ConversationBody, ResponseBody
from wasmetal.serve.schema import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from wasmetal.serve.strict import Body

BODIES: Mapping[str, type[Body]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponseBody,
    "/v1/conversations": ConversationBody,
    "/v1/embeddings": EmbeddingBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
"""What is read at a path."""
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


async def openapi(request: Request) -> Response:
    """This description."""
    return JSONResponse(describe([route for route in request.app.routes if isinstance(route, Route)]))


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes."""
    _, schemas = models_json_schema([(body, "validation") for body in BODIES.values()], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "wasmetal", "version": version("wasmetal")},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    error = {"description": "what is wrong", "content": _content("Error")}
    operation: dict[str, Any] = {
        "summary": (route.endpoint.__doc__ or "").split("\n")[0],
        "responses": {"200": {"description": "the answer"}, "4XX": error, "5XX": error},
    }
    if body := BODIES.get(route.path):
        kinds = ["application/json", *["text/event-stream"][: "stream" in body.model_fields]]
        operation["responses"]["200"]["content"] = {kind: {} for kind in kinds}
        operation["requestBody"] = {"required": True, "content": _content(body.__name__)}
    if names := _PARAMETER.findall(route.path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return operation


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}
