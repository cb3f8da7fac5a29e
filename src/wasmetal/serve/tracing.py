"""OpenTelemetry traces: a span for each request, with one for each phase of its completions.

The spans are made when the request has ended, of what its record says, so nothing happens on the way to an answer.
Names of attributes are those of OpenTelemetry's semantic conventions for HTTP and for generative models.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wasmetal.errors import WasmetalError
from wasmetal.serve.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Traces:
    """Writes the spans of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415 (an extra)
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("wasmetal.serve")
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._within = set_span_in_context
        self._propagator = TraceContextTextMapPropagator()

    def write(self, record: Record) -> None:
        """The spans of a request that has been answered."""
        operation = _OPERATIONS.get(record.route, "")
        attributes: dict[str, str | int | float] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "wasmetal.request.id": record.id,
            "wasmetal.key": record.key,
        }
        if operation and record.model:
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.request.model": record.model}
        if record.started is not None:
            attributes |= {
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "wasmetal.usage.cached_tokens": record.cached_tokens,
                "wasmetal.device.seconds": record.device_seconds,
                "wasmetal.finish": record.finish,
            }
        parent = self._propagator.extract(record.trace)
        span = self._tracer.start_span(
            f"{record.method} {record.route}", parent, self._server, attributes, start_time=record.came_ns
        )
        if record.status >= 500 or record.finish == "error":
            span.set_status(self._error)
        within = self._within(span)
        for name, begin, end in _phases(record):
            self._tracer.start_span(name, within, start_time=_at(record, begin)).end(_at(record, end))
        span.end(_at(record, record.ended))

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


def _phases(record: Record) -> list[tuple[str, float, float]]:
    """What a completion did, and from when to when."""
    if record.started is None:
        return []
    if record.first is None:
        return [("queue", 0.0, record.started), ("prompt", record.started, record.ended)]
    return [
        ("queue", 0.0, record.started),
        ("prompt", record.started, record.first),
        ("decode", record.first, record.ended),
    ]


def _at(record: Record, seconds: float) -> int:
    return record.came_ns + int(seconds * 1e9)


def traces() -> Traces | None:
    """Traces for the endpoint that the environment names, in OpenTelemetry's own variables; None if it names none.

    Raises WasmetalError if OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in _VARIABLES):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise WasmetalError(f"traces need {error.name}; install it with: pip install 'wasmetal[otel]'") from None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before the name that is given here.
    named = os.environ.get("OTEL_SERVICE_NAME", "wasmetal")
    provider = TracerProvider(resource=Resource.create({"service.name": named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
