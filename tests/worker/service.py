"""A service that does what it is asked, however unwise."""

import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

from wasmetal.errors import ModelError
from wasmetal.worker.channel import Channel
from wasmetal.worker.child import answer
from wasmetal.worker.confinement import Allowance


def run(channel: Channel, allowance: Allowance) -> None:
    answer(channel, allowance, serve)


def serve(header: dict[str, Any], payload: bytearray) -> tuple[dict[str, Any], bytes]:
    argument = header.get("argument")
    match header["do"]:
        case "echo":
            return {"argument": argument, "pid": os.getpid()}, payload
        case "refuse":
            raise ModelError(argument)
        case "raise":
            raise KeyError(argument)
        case "exit":
            os._exit(argument)
        case "abort":
            os.abort()
        case "sleep":
            time.sleep(argument)
        case "hold the GIL":  # comparing takes 2 ** 60 steps in C
            left: list[Any] = [0]
            right: list[Any] = [0]
            for _ in range(60):
                left, right = [left, left], [right, right]
            return {"equal": left == right}, b""
        case "allocate":
            return {"held": len(bytes(argument))}, b""
        case "answer":
            return {}, bytes(argument)
        case "environment":
            return dict(os.environ), b""
        case "read":
            return {}, Path(argument).read_bytes()
        case "write":
            Path(argument).write_bytes(b"written")
        case "connect":
            socket.create_connection(("127.0.0.1", argument))
        case "send":
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"sent", ("127.0.0.1", argument))
        case "execute":
            os.execv("/bin/true", ["true"])
        case "fork":
            if os.fork() == 0:
                os._exit(0)
        case "kill":
            os.kill(argument, 0)
        case "limits":
            return {"core": resource.getrlimit(resource.RLIMIT_CORE)}, b""
    return {}, b""
