"""Tracing on the data path: one span for each request, a child of the client's and the parent of Chroma's."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.observability.tracing import Tracing
from tests.front import COLLECTION, front

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ASK = (
    f"GET {COLLECTION}/count HTTP/1.1\r\nHost: x\r\nX-Chroma-Token: secret\r\n"
    f"Traceparent: 00-{TRACE}-{PARENT}-01\r\nX-Last: 1\r\nConnection: close\r\n\r\n"
).encode()


class _Echo(BaseHTTPRequestHandler):
    """Responds with the headers of the request."""

    def do_GET(self) -> None:
        body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def upstream() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def received_headers(answer: bytes) -> list[list[str]]:
    found: list[list[str]] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_the_span_is_a_child_of_the_clients_and_the_parent_of_chromas(upstream: int) -> None:
    """Chroma gets one traceparent, of the same trace and the gateway's span. The span has the status."""
    exporter = InMemorySpanExporter()
    with front(upstream) as built:
        built.path.policy.traced = True
        built.path._tracing = Tracing(SimpleSpanProcessor(exporter))
        headers = received_headers(built.ask(ASK))
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    traceparents = [value for name, value in headers if name == "traceparent"]
    assert traceparents == [f"00-{TRACE}-{span.context.span_id:016x}-01"]
    assert span.name == "GET count"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200


def test_without_tracing_the_clients_traceparent_is_passed_on(upstream: int) -> None:
    """Unchanged. The headers with a key are not passed on."""
    with front(upstream) as built:
        headers = received_headers(built.ask(ASK))
    assert ["traceparent", f"00-{TRACE}-{PARENT}-01"] in headers
    assert ["x-last", "1"] in headers
    assert not [name for name, value in headers if re.search("token|authorization", name) or "secret" in value]
