"""A stand-in for the Hugging Face Hub on this machine: one server, repositories in memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(ThreadingHTTPServer):
    """Serves the models of ``repositories``: files by name. It notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.licence: str | None = "apache-2.0"
        self.token: str | None = None
        """What is asked for, if anything."""
        self.cut: list[int] = []
        """Break the next connections after so many bytes of a file."""
        self.damaged = False
        """Send other bytes than those that were published."""
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and range of each request."""

    def downloads(self) -> list[tuple[str, str | None]]:
        """File and range of each download."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span in self.asked
            if (method, path[:5]) == ("GET", "/org/")
        ]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the conditions"})
            return
        repository, _, file = path.removeprefix("/api/models").strip("/").partition("/resolve/main/")
        files = self.server.repositories.get(repository)
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self.answer(200, json.dumps(self.description(repository, files)).encode())
        elif file not in files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self.file(files[file])

    def description(self, repository: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
            }
            for name, data in files.items()
        ]
        card = {"license": self.server.licence} if self.server.licence else {}
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": card}

    def file(self, data: bytes) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if self.server.damaged:
            data = data[::-1]
        span = self.headers.get("Range")
        if span and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start = int(span.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], headers)
        else:
            self.answer(200, data, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cut.pop(0) if self.server.cut and "/resolve/" in self.path else None
            self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
