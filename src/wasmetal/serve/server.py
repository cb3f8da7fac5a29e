"""The server: it listens until it is told to end, and then lets running requests finish."""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from wasmetal.errors import setting_up
from wasmetal.serve.connection import Connection
from wasmetal.serve.engine import Engine
from wasmetal.serve.errors import draining

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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 is a free port. Raises WasmetalError."""
    where = host, port
    with setting_up(f"listen on {host}, port {port}"):
        return socket.create_server(where, family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)


class Server(uvicorn.Server):
    """On SIGTERM and SIGINT, new requests get status 503, and it ends when those that run have ended."""

    def __init__(
        self, app: Starlette, listener: socket.socket, on_start: Callable[[str], object] | None = None
    ) -> None:
        """``listener`` is closed at the end. ``on_start`` is called with the address, as a URL, once it listens."""
        self._listener = listener
        self._engine: Engine = app.state.engine
        self._on_start = on_start
        self._deadline = math.inf
        limits = self._engine.limits
        super().__init__(
            uvicorn.Config(
                app,
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

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, until the end."""
        super().run([self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self._on_start:
            host, port, *_ = self._listener.getsockname()
            self._on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")

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
