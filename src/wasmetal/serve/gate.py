"""What every request goes through first: whose it is, where it came for, and that it is counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import ApiError, draining
from wasmetal.serve.keys import Keys
from wasmetal.serve.record import Record, request_id
from wasmetal.serve.routes import page

OPEN = frozenset({"/health", *page.FILES})
"""Paths that need no key."""
ABOUT = frozenset({"/health", "/metrics"})
"""Paths that are there while the server drains."""
QUIET = frozenset({"/health", "/metrics", "/stats", *page.FILES})
"""Paths that are asked for again and again, of which observers hear only if something is wrong."""
GONE = 499
"""The status under which requests are counted whose client went away before it got an answer."""


class Gate:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: Engine,
        keys: Keys,
        hosts: Collection[str] | None,
        paths: Collection[str],
        observers: Sequence[Callable[[Record], object]] = (),
    ) -> None:
        """``hosts``: the names under which the server may be asked for, None: any. ``paths``: those that are counted
        under their own names. ``observers``: they are told of each request that has been answered."""
        self._app = app
        self._engine = engine
        self._keys = keys
        self._hosts = hosts
        self._paths = frozenset(paths)
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._record(scope)
        record.status = GONE

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            self._check(scope, record)
            await self._app(scope, receive, sending)
        except ApiError as error:
            await error.response()(scope, receive, sending)
        except Exception:
            record.status = 500
            raise
        finally:
            for release in scope["state"]["releases"]:
                release()
            self._ended(record)

    def _record(self, scope: Scope) -> Record:
        headers, path = Headers(scope=scope), scope["path"]
        route = path if path in self._paths else "other"
        trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        record = Record(request_id(headers.get("x-request-id")), scope["method"], path, route, trace)
        scope.setdefault("state", {}).update(record=record, releases=[])
        return record

    def _ended(self, record: Record) -> None:
        record.ended = record.now()
        self._engine.metrics.request(record.route, record.status, record.key)
        if record.route not in QUIET or record.status >= 400:
            for observe in self._observers:
                observe(record)

    def _check(self, scope: Scope, record: Record) -> None:
        """Raise ApiError if the request is not to be answered."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            # A page of another site whose name was made to mean this machine, which browsers take for the same site.
            raise ApiError(403, "the server is not known under the name in the header Host", code="unknown_host")
        owner = self._owner(headers) if self._keys else ""
        if owner is None and path not in OPEN:
            raise ApiError(
                401,
                "no valid API key in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._engine.admission.draining and path not in ABOUT:
            raise draining()
        record.key = scope["state"]["owner"] = owner or ""

    def _owner(self, headers: Headers) -> str | None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        return self._keys.owner(key.strip()) if kind.lower() == "bearer" else None


def _name(host: str) -> str:
    """A host without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and not port.endswith("]") else host).lower()
