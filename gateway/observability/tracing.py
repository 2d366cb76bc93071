"""OpenTelemetry spans for requests to `/api/`, if GATEWAY_TRACES is set. Switched off, tracing has no cost.

OpenTelemetry's own `OTEL_*` variables say where spans go. A background thread sends them. Spans that cannot be sent are
dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_CLOSE_TIMEOUT_MS = 1000
_FIRST_SERVER_ERROR = 500


class Tracing:
    """Creates spans and sends them through `processor`."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415  # optional
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._processor = processor
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "chroma-gateway"}), shutdown_on_exit=False)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("chroma-gateway")
        self._contexts = TraceContextTextMapPropagator()
        self._kind, self._error = SpanKind.SERVER, Status(StatusCode.ERROR)

    def begin(
        self, route: str, what: str, traceparent: bytes | None, request_id: bytes
    ) -> tuple[bytes, Callable[[int], None]]:
        """Begin a span, as a child of the client's span if `traceparent` names one.

        `what` is the method and the path. Returns the `traceparent` header line for Chroma, and a function that ends
        the span with the response's status; status 0 means that there was no response.
        """
        told = {"traceparent": traceparent.decode("latin-1")} if traceparent else {}
        method, _, path = what.partition(" ")
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._contexts.extract(told),
            kind=self._kind,
            attributes={
                "http.request.method": method,
                "url.path": path,
                "http.route": route,
                "request.id": request_id.decode("latin-1"),
            },
        )
        of = span.get_span_context()
        line = f"traceparent: 00-{of.trace_id:032x}-{of.span_id:016x}-{int(of.trace_flags):02x}\r\n".encode()

        def end(status: int) -> None:
            span.set_attribute("http.response.status_code", status)
            if status == 0 or status >= _FIRST_SERVER_ERROR:
                span.set_status(self._error)
            span.end()

        return line, end

    def close(self) -> None:
        """Send the remaining spans, for at most `_CLOSE_TIMEOUT_MS`. Blocks."""
        self._processor.force_flush(_CLOSE_TIMEOUT_MS)


def open_tracing() -> Tracing:
    """Tracing that sends spans where `OTEL_*` says. Raises ConfigError if OpenTelemetry is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # optional
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"GATEWAY_TRACES is set, and OpenTelemetry is not installed: {error}",
            "pip install 'chroma-gateway[traces]', or unset it",
        ) from None
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))
