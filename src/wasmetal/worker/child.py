"""The worker process's own side: confine the process, and run the service."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from wasmetal.errors import WasmetalError
from wasmetal.worker.channel import Channel, ChannelError, Header, Payload
from wasmetal.worker.confinement import Allowance, confine

MOST = 1 << 40
"""Most bytes of a message from the parent, which is trusted."""


def main(handle: int) -> None:
    """Run the service that the first message on a socket names, until the other end is closed.

    The service is a module with a function ``run(channel, allowance)``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_blocking(2, False)  # standard error is read only when the process has ended; what does not fit is lost
    if sys.platform == "darwin":  # Linux ends the process by itself
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    channel = Channel(socket.socket(fileno=handle))
    try:
        settings, _ = channel.receive(MOST)
        allowance = Allowance()
        if settings["files"]:
            confine(files=True, writable=settings["writable"])
            service = importlib.import_module(settings["service"])
        else:
            service = importlib.import_module(settings["service"])  # later nothing can be read
            confine(files=False)
        channel.send({})
        service.run(channel, allowance)
    except ChannelError:  # the parent has ended, or needs the process no more
        os._exit(0)


def answer(
    channel: Channel, allowance: Allowance, serve: Callable[[Header, bytearray], tuple[Header, Payload]]
) -> None:
    """Answer requests by a function, within what each may take, until the channel is closed."""
    while True:
        request, payload = channel.receive(MOST)
        with allowance.granted(request["memory"], request["seconds"]):
            try:
                header, result = serve(request["header"], payload)
                reply: Header = {"answer": header}
            except WasmetalError as error:
                reply, result = {"refused": str(error)[:1000]}, b""
            except MemoryError:
                reply, result = {"exhausted": True}, b""
        channel.send(reply, result)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
