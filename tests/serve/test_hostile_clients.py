"""Requests that nobody should send, and clients that are slow."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cli.command import wasmetal
from tests.serve.serving import PATIENCE, Serving, serving, wait_for
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.keys import KeysError, new_key, read_keys
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.server import LOCAL, is_loopback, listen

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")
BODY: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
KEY = "a key of sixteen characters, or more"

numbers = st.integers(-(2**70), 2**70) | st.integers(-3, 30) | st.floats() | st.booleans() | st.none()
texts = st.text(max_size=20) | st.sampled_from(["tiny", "vectors", "user", "assistant", "text", "\ud800", "<|im_end|>"])
fields = st.sampled_from(
    [
        "model",
        "messages",
        "role",
        "content",
        "prompt",
        "input",
        "tokens",
        "stop",
        "n",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "type",
        "text",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "stream",
        "stream_options",
        "include_usage",
        "presence_penalty",
        "frequency_penalty",
        "echo",
        "encoding_format",
        "dimensions",
        "response_format",
        "tools",
        "metadata",
        "suffix",
        "add_special_tokens",
        "min_tokens",
    ]
)
values = st.recursive(
    numbers | texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(fields | texts, inner, max_size=4)
)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": values}), max_size=3)
sensible = st.fixed_dictionaries(
    {"model": st.just("tiny")},
    optional={"messages": messages, "prompt": values, "max_tokens": st.integers(1, 3), "stop": values, "input": values},
)
bodies = st.builds(lambda base, more: base | more, sensible, st.dictionaries(fields, values, max_size=3)) | values


def well_formed(status: int, body: Any) -> bool:
    """What a client may be told."""
    if status == 200:
        return True
    error = body["error"]
    return status in (400, 404, 413) and {"message", "type", "param", "code"} == error.keys() and bool(error["message"])


@given(path=st.sampled_from(PATHS), body=bodies)
@example("/v1/completions", BODY | {"prompt": [2**31 - 1]})
@example("/v1/completions", BODY | {"prompt": ""})
@example("/v1/completions", BODY | {"logit_bias": {"²": 1}})
@example("/v1/completions", BODY | {"temperature": 1e-45, "top_p": 0})
@example("/v1/completions", BODY | {"seed": -(2**63), "top_k": 2**31 - 1, "min_p": 1})
@example("/v1/completions", BODY | {"min_tokens": 2, "logit_bias": {str(token): -100 for token in range(274)}})
@example("/detokenize", {"model": "tiny", "tokens": [2**31 - 1]})
def test_no_body_is_the_servers_fault(served: Serving, path: str, body: Any) -> None:
    if isinstance(body, dict):
        body = body | ({"max_tokens": 3} if path.endswith("completions") else {})
    status, answer, _ = served.ask(path, body)
    assert well_formed(status, answer), (status, answer)


@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"model": "tiny", "prompt": "x", "temperature": NaN}')
@example(b'{"model": "tiny", "prompt": "\\ud800"}')
@example(b'{"model": "tiny", "prompt": "x", "max_tokens": 1e400}')
@example(b'{"model": "tiny", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}")
def test_no_bytes_are(served: Serving, data: bytes) -> None:
    status, answer, _ = served.ask("/v1/completions", raw=data)
    assert status == 400
    assert well_formed(status, answer)


@given(
    data=st.binary(max_size=200) | st.builds(lambda a, b: b"POST " + a + b" HTTP/1.1\r\n" + b, st.binary(), st.binary())
)
@example(b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n")
@example(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
def test_no_connection_is(served: Serving, data: bytes) -> None:
    with socket.create_connection((served.host, served.port), PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    assert not answer.startswith(b"HTTP/1.1 5")
    assert served.ask("/health")[0] == 200


def test_paths_and_methods(served: Serving) -> None:
    for path in ("/page", "/v1", "/v1/models/../../etc/passwd", "/v1/nothing", "/v1/models/tiny%00"):
        status, body, _ = served.ask(path)
        assert (status, set(body)) == (404, {"error"})
    assert served.ask("/v1/completions")[0] == 405
    assert 'path="other"' in served.ask("/metrics")[1]


def test_only_json_that_says_so(served: Serving) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert served.ask("/v1/completions", BODY, headers={"Content-Type": kind})[0] == 415
    assert served.ask("/v1/completions", BODY, headers={"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200


@contextmanager
def limited(model: Model, **limits: Any) -> Iterator[Serving]:
    with serving(Engine([model], ServerLimits(**limits))) as server:
        yield server


def test_large_bodies(tiny: Model) -> None:
    with limited(tiny, body_bytes=1000) as server:
        assert server.ask("/v1/completions", BODY | {"prompt": "x" * 900})[0] == 200
        status, body, _ = server.ask("/v1/completions", BODY | {"prompt": "x" * 1000})
        assert (status, body["error"]["type"]) == (413, "invalid_request_error")
        with socket.create_connection((server.host, server.port), PATIENCE) as connection:
            head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n7d0\r\n{' ' * 2000}\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_many_of_something(tiny: Model) -> None:
    with limited(tiny, messages=2, inputs=2, choices=3, max_tokens=5) as server:
        message = {"role": "user", "content": "x"}
        chat = {"model": "tiny", "max_tokens": 1}
        assert server.ask("/v1/chat/completions", chat | {"messages": [message] * 3})[0] == 400
        assert server.ask("/v1/completions", BODY | {"prompt": ["a", "b", "c"]})[0] == 400
        assert server.ask("/v1/completions", BODY | {"prompt": ["a", "b"], "n": 2})[0] == 400
        bias = {"logit_bias": {"0": -100, "2": -100}, "max_tokens": 100}
        assert server.ask("/v1/completions", BODY | bias)[1]["usage"]["completion_tokens"] == 5


def closed(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def test_slow_clients(tiny: Model) -> None:
    with limited(tiny, header_seconds=0.2, body_seconds=0.2, send_seconds=0.2) as server:
        address = server.host, server.port
        for head in (b"", b"GET /health HTTP/1.1\r\nHost: "):
            with socket.create_connection(address, PATIENCE) as connection:
                connection.sendall(head)
                assert closed(connection) == b""
        with socket.create_connection(address, PATIENCE) as connection:  # the second request on a connection
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.sendall(b"lth")
            closed(connection)
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        with socket.create_connection(address, PATIENCE) as connection:
            connection.sendall(head)
            assert closed(connection).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read(tiny: Model) -> None:
    body = json.dumps(
        {"model": "tiny", "tokens": [tiny.vocab_size - 1] * 2_000_000}
    )  # " world": more than buffers hold
    head = "POST /detokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    with limited(tiny, send_seconds=0.2, body_bytes=1 << 25) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.host, server.port))
        connection.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: bool(server.server.server_state.connections))
        wait_for(lambda: not server.server.server_state.connections)
        assert len(closed(connection)) < 6_000_000


def test_keys(tiny: Model, tmp_path: Path) -> None:
    second, line = new_key("ann")
    file = tmp_path / "keys"
    file.write_text(f"# who\n{line}\n\n")
    assert second not in line
    with serving(Engine([tiny]), keys=read_keys(KEY, file)) as server:
        for key in (KEY, second):
            assert server.client(key).completions.create(model="tiny", prompt="x", max_tokens=1).choices
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
        ):
            for path in ("/v1/models", "/metrics", "/nothing"):
                status, body, _ = server.ask(path, headers=headers)
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert server.ask("/health")[0] == 200


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("short", None, "5 characters"),
        (None, "", "has no keys"),
        (None, "ann", "line 1: not a name and the SHA-256"),
        (None, f"ann {'0' * 64}\nann {'1' * 64}", "line 2: there is another key of ann"),
    ],
)
def test_keys_that_cannot_be_used(tmp_path: Path, key: str | None, text: str | None, message: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KeysError, match=message):
        read_keys(key, None if text is None else file)


def test_other_sites_pages(tiny: Model) -> None:
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(Engine([tiny]), hosts=LOCAL) as server:
        for host, status in (
            ("localhost:1", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("a.example:80", 403),
            ("", 403),
        ):
            assert server.ask("/health", headers={"Host": host})[0] == status
        assert "access-control-allow-origin" not in server.ask("/health", headers=asking)[2]
    with serving(Engine([tiny]), origins=["https://a.example"], keys=read_keys(KEY, None)) as server:
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            headers = server.ask("/health", headers={"Origin": origin})[2]
            assert ("access-control-allow-origin" in headers) is allowed


def test_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))
    done = wasmetal("serve", "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--insecure" in done.stderr
    with listen("127.0.0.1", 0) as taken:
        done = wasmetal("serve", "--port", taken.getsockname()[1])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_new_keys(tmp_path: Path) -> None:
    key, line = wasmetal("serve", "--new-key", "ann").stdout.splitlines()
    (tmp_path / "keys").write_text(line)
    assert read_keys(None, tmp_path / "keys").owner(key) == "ann"
