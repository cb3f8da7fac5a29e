"""The application: which path is which endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import HANDLERS
from wasmetal.serve.gate import Gate
from wasmetal.serve.keys import Keys
from wasmetal.serve.openapi import openapi
from wasmetal.serve.record import Record
from wasmetal.serve.routes import about, chat, completions, embeddings, page, responses, stats, tokens


def application(
    engine: Engine,
    *,
    keys: Keys | None = None,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
    observers: Sequence[Callable[[Record], object]] = (),
) -> Starlette:
    """The ASGI application.

    ``keys``: who may use it; None: everybody. ``hosts``: the names under which it may be asked for; None: any.
    ``origins``: sites whose pages may use it from a browser. ``observers``: they are told of each request that has been
    answered, on the event loop.
    """
    routes = [
        Route("/health", about.health),
        Route("/metrics", about.metrics),
        Route("/openapi.json", openapi),
        Route("/v1/models", about.models),
        Route("/v1/models/{name:path}", about.model),
        Route("/v1/chat/completions", chat.chat, methods=["POST"]),
        Route("/v1/completions", completions.completions, methods=["POST"]),
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{id}", responses.retrieve),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        Route("/v1/conversations", responses.create_conversation, methods=["POST"]),
        Route("/v1/conversations/{id}", responses.retrieve_conversation),
        Route("/v1/conversations/{id}", responses.delete_conversation, methods=["DELETE"]),
        Route("/v1/embeddings", embeddings.embeddings, methods=["POST"]),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/stats", stats.stats),
        *(Route(path, page.file) for path in page.FILES),
    ]
    paths = [route.path for route in routes]
    gate = Middleware(Gate, engine=engine, keys=keys or Keys({}), hosts=hosts, paths=paths, observers=observers)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id", "X-Session-Id", "X-Wasmetal-Actor"],
        expose_headers=["X-Request-Id"],
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await engine.close()

    app = Starlette(
        routes=routes,
        middleware=[cors, gate] if origins else [gate],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.engine = engine
    return app
