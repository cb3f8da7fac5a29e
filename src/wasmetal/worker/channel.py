"""Messages between two processes: a JSON object and raw bytes, preceded by their lengths.

Nothing is unpickled, so the other side can send wrong data but cannot run code here.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER = 1 << 20
"""Most bytes of a header that is received."""

Header = dict[str, Any]
Payload = bytes | bytearray | memoryview


class ChannelError(Exception):
    """The other side closed the channel, or what it sent is no message."""


class Channel:
    """One end of a stream socket.

    ``until``, where it is a parameter, is the time (of ``time.monotonic``) at which TimeoutError is raised. After any
    exception a message may have been sent or received in part: close the channel then.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, header: Header, payload: Payload = b"", *, until: float | None = None) -> None:
        """Send a message. Raises ChannelError."""
        text = json.dumps(header).encode()
        with memoryview(payload).cast("B") as body:
            for part in (_LENGTHS.pack(len(text), body.nbytes) + text, body):
                with self._before(until):
                    self.socket.sendall(part)

    def receive(self, most: int, *, until: float | None = None) -> tuple[Header, bytearray]:
        """The next message. Raises ChannelError, for a payload of more than ``most`` bytes too."""
        header_size, size = _LENGTHS.unpack(self._read(_LENGTHS.size, until))
        if header_size > _MAX_HEADER or size > most:
            raise ChannelError(f"a message of {header_size} + {size} bytes is too large")
        try:
            header = json.loads(self._read(header_size, until))
        except (ValueError, RecursionError):
            raise ChannelError("a header that is not JSON") from None
        if not isinstance(header, dict):
            raise ChannelError("a header that is not a JSON object")
        return header, self._read(size, until)

    def close(self) -> None:
        """Close this end. The other side finds the end of the stream."""
        self.socket.close()

    def _read(self, count: int, until: float | None) -> bytearray:
        data = bytearray(count)
        filled = 0
        while filled < count:
            with self._before(until):
                received = self.socket.recv_into(memoryview(data)[filled:])
            if not received:
                raise ChannelError("closed by the other side")
            filled += received
        return data

    @contextmanager
    def _before(self, until: float | None) -> Iterator[None]:
        """Bound an operation on the socket, and turn its errors into ChannelError."""
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        try:
            self.socket.settimeout(left)
            yield
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelError(str(error)) from error
