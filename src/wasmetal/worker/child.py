"""The worker process's own side: import the service, confine the process, answer requests."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable

from wasmetal.errors import WasmetalError
from wasmetal.worker.channel import Channel, ChannelError, Header, Payload
from wasmetal.worker.confinement import Allowance, confine

Serve = Callable[[Header, bytearray], tuple[Header, Payload]]

_MOST = 1 << 40
"""Most bytes of a request: the other side is trusted."""


def main(handle: int) -> None:
    """Answer the requests from a socket until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=handle))
    try:
        settings, _ = channel.receive(_MOST)
        allowance = Allowance()
        if not settings["files"]:
            # Nothing can be imported later.
            serve: Serve = importlib.import_module(settings["service"]).serve
            confine(files=False)
        else:
            confine(files=True, writable=settings["writable"])
            serve = importlib.import_module(settings["service"]).serve
        channel.send({})
        while True:
            request, payload = channel.receive(_MOST)
            with allowance.granted(request["memory"], request["seconds"]):
                answer, result = _answer(serve, request["header"], payload)
            channel.send(answer, result)
    except ChannelError:  # the parent has ended
        os._exit(0)


def _answer(serve: Serve, header: Header, payload: bytearray) -> tuple[Header, Payload]:
    try:
        answer, result = serve(header, payload)
    except WasmetalError as error:
        return {"refused": str(error)[:1000]}, b""
    except MemoryError:
        return {"exhausted": True}, b""
    return {"answer": answer}, result


if __name__ == "__main__":
    main(int(sys.argv[1]))
