"""Servers for tests, each on a thread and a free port of this machine."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai

from wasmetal.serve.app import application
from wasmetal.serve.engine import Engine
from wasmetal.serve.server import Server, listen

PATIENCE = 60.0


class Serving:
    """A server that runs."""

    def __init__(self, engine: Engine, server: Server, url: str) -> None:
        self.engine, self.server, self.url = engine, server, url
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 0

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **({"max_retries": 0} | options))

    def ask(
        self, path: str, body: Any = None, *, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """A request without the client: status, body (parsed if it is JSON), headers in lower case."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = ({"Content-Type": "application/json"} if data is not None else {}) | (headers or {})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request("GET" if data is None else "POST", path, data, sent)
            response = connection.getresponse()
            content, found = response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content.decode(), found

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def wait_for(what: Callable[[], bool]) -> None:
    """Until it is so."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


@contextmanager
def serving(engine: Engine, **options: Any) -> Iterator[Serving]:
    """Serve with an engine that is not used otherwise. ``options``: of :func:`application`."""
    addresses: list[str] = []
    server = Server(application(engine, **options), listen("127.0.0.1", 0), addresses.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: bool(addresses) or not thread.is_alive())
        yield Serving(engine, server, addresses[0])
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert not engine.tasks
