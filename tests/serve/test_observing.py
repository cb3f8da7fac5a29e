"""Ids, logs, traces and figures of requests: what they say, and what they keep to themselves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.cli.command import SCRIPT, wasmetal
from tests.serve.serving import PATIENCE, Serving, serving, wait_for
from wasmetal import ActorProgram
from wasmetal.models import Model
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.keys import read_keys
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.record import Record
from wasmetal.serve.tracing import Traces

SECRET = "rosebud and other secrets"
ASK: dict[str, Any] = {"model": "tiny", "prompt": SECRET, "max_tokens": 5, "logit_bias": {"0": -100, "2": -100}}
KEYS = {name: f"the long and random key of {name}" for name in ("ann", "bob")}


class Observed(Serving):
    records: list[Record]
    spans: InMemorySpanExporter


@pytest.fixture
def server(tiny: Model, tmp_path: Path) -> Iterator[Observed]:
    """One whose requests are observed, with keys for ann and bob."""
    lines = [f"{name} {hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items()]
    (tmp_path / "keys").write_text("\n".join(lines))
    records: list[Record] = []
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    observers = [records.append, Traces(provider).write]
    keys = read_keys(None, tmp_path / "keys")
    with serving(Engine([tiny], ServerLimits(running=2)), keys=keys, observers=observers) as server:
        observed = Observed(server.engine, server.server, server.url)
        observed.records, observed.spans = records, spans
        yield observed


def of(name: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"} | more


def test_ids(server: Observed) -> None:
    assert (
        server.ask("/v1/completions", ASK, headers=of("ann", **{"X-Request-Id": "mine-1"}))[2]["x-request-id"]
        == "mine-1"
    )
    made = server.ask("/v1/models", headers=of("ann"))[2]["x-request-id"]
    assert made.startswith("req_")
    for wrong in ("with spaces", "x" * 129, "{}", "é"):
        found = server.ask("/nothing", headers=of("ann", **{"X-Request-Id": wrong}))
        assert (found[0], found[2]["x-request-id"][:4]) == (404, "req_")
    assert "x-request-id" in server.ask("/v1/models")[2]  # which is refused, without a key
    wait_for(lambda: len(server.records) == 7)
    assert [record.id for record in server.records[:2]] == ["mine-1", made]
    client = server.client(KEYS["ann"])
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1)._request_id


def test_a_record(server: Observed) -> None:
    assert server.ask("/v1/completions", ASK | {"n": 2}, headers=of("ann"))[0] == 200
    wait_for(lambda: len(server.records) == 1)
    said = server.records[0].as_dict()
    assert said | {"key": "ann", "model": "tiny", "path": "/v1/completions", "method": "POST", "status": 200} == said
    assert (said["completion_tokens"], said["finish"]) == (10, "length")
    assert said["prompt_tokens"] % 2 == 0
    assert 0 <= said["queue_seconds"] <= said["first_token_seconds"] <= said["seconds"]
    assert said["device_seconds"] > 0
    assert not any(word in json.dumps(said) for word in [SECRET, *KEYS.values()])
    server.engine.log_prompts = True
    assert server.ask("/v1/completions", ASK, headers=of("ann"))[0] == 200
    wait_for(lambda: len(server.records) == 2)
    assert server.records[1].as_dict()["prompt"].strip() == SECRET


def test_what_is_asked_for_again_and_again_is_left_out(server: Observed) -> None:
    for path in ("/health", "/metrics", "/stats", "/", "/page/page.js"):
        assert server.ask(path, headers=of("ann"))[0] == 200
    assert server.ask("/metrics")[0] == 401
    wait_for(lambda: len(server.records) == 1)
    assert (server.records[0].route, server.records[0].status, server.records[0].key) == ("/metrics", 401, "")


def test_a_client_that_goes_away(server: Observed) -> None:
    stream = server.client(KEYS["bob"]).completions.create(**ASK | {"max_tokens": 4000}, stream=True)
    next(stream)
    stream.close()
    wait_for(lambda: bool(server.records))
    assert (server.records[0].key, server.records[0].finish) == ("bob", "cancelled")
    assert 1 <= server.records[0].completion_tokens < 4000


def test_figures_of_a_key(server: Observed) -> None:
    for name, times in (("ann", 1), ("bob", 2)):
        for _ in range(times):
            assert server.ask("/v1/completions", ASK, headers=of(name))[0] == 200
    text = server.ask("/metrics", headers=of("ann"))[1]
    for name, tokens in (("ann", 5), ("bob", 10)):
        assert f'wasmetal_completion_tokens_total{{key="{name}",model="tiny"}} {tokens}.0' in text
        assert f'wasmetal_requests_total{{key="{name}",path="/v1/completions",status="200"}} {tokens / 5}' in text
    assert 'wasmetal_queue_seconds_count{model="tiny"} 3.0' in text
    assert 'wasmetal_kv_cache_bytes{model="tiny"}' in text
    assert not any(key in text for key in KEYS.values())


def test_spans(server: Observed) -> None:
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    assert server.ask("/v1/completions", ASK, headers=of("ann") | parent)[0] == 200
    assert server.ask("/v1/completions", ASK | {"model": "none"}, headers=of("ann"))[0] == 404
    wait_for(lambda: len(server.spans.get_finished_spans()) == 5)
    *phases, whole, other = server.spans.get_finished_spans()
    assert [span.name for span in phases] == ["queue", "prompt", "decode"]
    assert (whole.name, whole.kind) == ("POST /v1/completions", SpanKind.SERVER)
    assert whole.parent
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == tuple(
        parent["traceparent"].split("-")[1:3]
    )
    attributes = dict(whole.attributes or {})
    assert (
        attributes
        | {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": "tiny",
            "gen_ai.usage.output_tokens": 5,
            "http.response.status_code": 200,
            "wasmetal.key": "ann",
        }
        == attributes
    )
    ends = [whole.start_time]
    for span in phases:
        assert span.parent
        assert span.parent.span_id == whole.context.span_id
        assert span.start_time == ends[-1]
        ends.append(span.end_time)
    assert ends == sorted(ends)
    assert ends[-1] == whole.end_time
    assert (other.parent, other.status.status_code) == (None, StatusCode.UNSET)
    assert SECRET not in str([span.to_json() for span in server.spans.get_finished_spans()])


class Collector(BaseHTTPRequestHandler):
    """Takes traces."""

    got: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        self.got.append(ExportTraceServiceRequest.FromString(data))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_the_command_writes_lines_of_json_and_sends_traces(tiny_path: Path) -> None:
    Collector.got = []
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        command = [SCRIPT, "serve", tiny_path, "--port", "0", "--device", "cpu", "--log-json"]
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | endpoint) as process:
            try:
                assert process.stderr
                started = json.loads(process.stderr.readline())["message"]
                url = started.split()[-1].removesuffix("/v1")
                server = Serving(None, None, url)  # type: ignore[arg-type]
                assert server.ask("/v1/completions", ASK)[0] == 200
                line = process.stderr.readline()
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
                assert process.stderr.read() == ""
            finally:
                process.kill()
        collector.shutdown()
    said = json.loads(line)
    assert said | {"level": "info", "message": "request", "status": 200, "completion_tokens": 5} == said
    assert SECRET not in line
    (spans,) = (scope.spans for each in Collector.got for part in each.resource_spans for scope in part.scope_spans)
    assert [span.name for span in spans] == ["queue", "prompt", "decode", "POST /v1/completions"]


def test_prompts_are_logged_with_other_things_alone() -> None:
    done = wasmetal("serve", "--log-prompts")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--log-json" in done.stderr


def test_guests_that_are_models(tiny: Model, tmp_path: Path) -> None:
    program = ActorProgram(Path(__file__).parents[2] / "guests" / "vote.wasm")
    guests, records = [GuestModel("voting", program, {"default": tiny})], list[Record]()
    engine = Engine([tiny], ServerLimits(running=2, resident=2), guests=guests, actors=tmp_path / "actors")
    engine.log_prompts = True
    with serving(engine, observers=[records.append]) as server:
        said = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "temperature": 0}
        kept = {"X-Wasmetal-Actor": "ann"}
        used = [
            server.ask("/v1/chat/completions", said | {"model": "voting"})[1]["usage"],
            server.ask("/v1/chat/completions", said | {"model": "tiny"}, headers=kept)[1]["usage"],
        ]
        wait_for(lambda: len(records) == 2 and not engine.tasks)
        for name in ("prompt_tokens", "completion_tokens"):
            assert [getattr(record, name) for record in records] == [each[name] for each in used]
            assert server.metric(f"wasmetal_{name}_total") == sum(each[name] for each in used)
        assert [record.model for record in records] == ["voting", "tiny"]
        assert all(SECRET in (record.prompt or "") for record in records)
        assert all(record.device_seconds > 0 and record.finish for record in records)
        ended = server.ask("/stats")[1]["ended"]
        assert [(each["model"], each["state"]) for each in ended] == [("tiny", "ended"), ("voting", "ended")]
        awake = server.ask("/stats")[1]["conversations"]
        assert (awake["awake"], awake["places"], awake["thawed"]) == (1, 2, 0)
        assert min(awake["memory_bytes"], awake["device_bytes"]) > 0
        assert [each["tokens"] for each in ended] == [each["completion_tokens"] for each in reversed(used)]
        plain = {"model": "tiny", "input": SECRET, "store": False, "max_output_tokens": 5, "temperature": 0}
        assert server.ask("/v1/responses", plain)[0] == 200
        wait_for(lambda: len(records) == 3)
        assert (records[2].model, records[2].route) == ("tiny", "/v1/responses")
        assert SECRET in (records[2].prompt or "")
