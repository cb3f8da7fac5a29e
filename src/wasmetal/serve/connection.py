"""Connections: those of clients that are too slow are closed, and what is sent is not held back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from wasmetal.serve.limits import ServerLimits


class Connection(H11Protocol):
    """Uvicorn's, which by itself waits for the head of a request, and for a client to read, without end."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        limits: ServerLimits = config.app.state.engine.limits
        self._head, self._reading = _Timer(limits.header_seconds), _Timer(limits.send_seconds)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected, and its request is to begin."""
        super().connection_made(transport)
        # asyncio does so only where a socket says that it is one of TCP, which those of our listener do not. Pieces of
        # a stream would wait for the client to acknowledge the one before, which it puts off for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head.start(transport.abort)

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.stop()
        else:
            self._head.start(self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        super().pause_writing()
        self._reading.start(self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._head.stop()
        self._reading.stop()
        super().connection_lost(exc)


class _Timer:
    """Does something after some seconds, unless it is stopped before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self, action: Callable[[], object]) -> None:
        """Unless it runs already."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, action)

    def stop(self) -> None:
        """Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
