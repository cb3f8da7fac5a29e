"""The server: it listens until it is told to end, and then lets running requests finish."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from wasmetal.serve.connection import Connection
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import draining

log = logging.getLogger("wasmetal.serve")
_LAST = 5
"""Seconds that requests get to end once they were given up."""
_MOST_HEAD = 64 << 10
"""Bytes of a request's head."""
_KEEP_ALIVE = 30
"""Seconds for which a connection may be idle."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """On SIGTERM and SIGINT, new requests get status 503, and it ends when those that run have ended."""

    def __init__(
        self, app: Starlette, host: str, port: int, on_start: Callable[[Sequence[str]], object] | None = None
    ) -> None:
        """``on_start`` is called with the addresses, as URLs, once it listens."""
        self._engine: Engine = app.state.engine
        self._on_start = on_start
        self._deadline = math.inf
        limits = self._engine.limits
        super().__init__(
            uvicorn.Config(
                app,
                host,
                port,
                http=Connection,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_LAST,
                h11_max_incomplete_event_size=_MOST_HEAD,
            )
        )

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and self._on_start:
            names = [each.getsockname() for server in self.servers for each in server.sockets]
            self._on_start([f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}" for name in names])

    def drain(self) -> None:
        """End, when those requests that run have ended, or after ``drain_seconds``; at once if it is called again."""
        again = self._engine.admission.draining
        self._engine.admission.draining = True
        self._deadline = time.monotonic() + (0 if again else self._engine.limits.drain_seconds)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end."""
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._engine.admission.draining and not self.server_state.tasks:
            self.should_exit = True
        if time.monotonic() > self._deadline:
            self._engine.give_up(draining())
            self.should_exit = True
        return await super().on_tick(counter)
