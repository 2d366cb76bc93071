"""An HTTP proxy in front of a real S3 server that injects faults.

    with FaultProxy(server.port) as proxy:
        proxy.rules = [Rule("status", method="GET", count=2), Rule("drop_reply", method="PUT")]

It passes requests on unchanged, `Host` too, so that their signatures stay valid. Bodies are held in memory whole.
"""

import contextlib
import http.client
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, Self

Fault = Literal[
    "status",
    "close",
    "reset",
    "drop_reply",
    "conflict",
    "delay",
    "stall",
    "drip",
    "truncate",
    "flip",
    "ignore_range",
    "replace",
]

_ERROR_CODES = {403: "AccessDenied", 409: "ConditionalRequestConflict", 500: "InternalError", 503: "SlowDown"}
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_IDLE_TIMEOUT_S = 60


@dataclass
class Rule:
    """A fault and the requests that it applies to. The first rule that fits a request and is not used up applies.

    `method` and `contains` (a part of the URL) select requests; the first `skip` of them pass, the next `count`
    get the fault, without `count` all of them. With `every`, each of that many does.

    status        answer `status` with an S3 error; the server gets nothing
    close         close the connection; the server gets nothing
    reset         reset the connection; the server gets nothing
    drop_reply    let the server act, then reset the connection
    conflict      pass the request on `delay_s` later; answer others for the same object with 409 meanwhile, as AWS does
    delay         pass the request on `delay_s` later
    stall         never answer; with `at_byte`, stop at that byte of the answer's body
    drip          send the answer in 20 pieces, which takes `delay_s` in all
    truncate      end the answer's body at `at_byte`, although its length promises more
    flip          change the byte at `at_byte` of the answer's body
    ignore_range  pass the request on without its `Range`
    replace       answer `status` with `body`; the server gets nothing
    """

    fault: Fault
    method: str = ""
    contains: str = ""
    count: int | None = None
    status: int = 503
    at_byte: int | None = None
    delay_s: float = 0
    body: bytes = b""
    skip: int = 0
    every: int = 1

    def fits(self, method: str, target: str) -> bool:
        return self.count != 0 and self.method in ("", method) and self.contains in target


class FaultProxy:
    """Listens on `port` of 127.0.0.1 while entered; `rules` may be replaced at any time.

    `requests` has the method and target of every request, in order of arrival.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        self.closed = threading.Event()
        self.conflicts = 0
        """How many requests were answered with 409 by `conflict`."""
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def rule_for(self, method: str, target: str) -> Rule | None:
        with self._lock:
            self.requests.append((method, target))
            for rule in self.rules:
                if rule.fits(method, target):
                    if rule.skip:
                        rule.skip -= 1
                        continue
                    rule.skip = rule.every - 1
                    if rule.count is not None:
                        rule.count -= 1
                    return rule
        return None

    @contextlib.contextmanager
    def write_of(self, target: str) -> Iterator[bool]:
        """For the time of a write. Yields False if another one of the same object is under way."""
        with self._lock:
            if is_alone := target not in self._under_way:
                self._under_way.add(target)
            else:
                self.conflicts += 1
        try:
            yield is_alone
        finally:
            if is_alone:
                with self._lock:
                    self._under_way.discard(target)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_TIMEOUT_S
    # With Nagle's algorithm the body of an answer waits for the acknowledgement of its head.
    disable_nagle_algorithm = True
    server: _Server

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        rule = self.server.proxy.rule_for(self.command, self.path) or Rule("delay")
        match rule.fault:
            case "status":
                self.answer(rule.status, [("Content-Type", "application/xml")], _error(rule.status))
            case "replace":
                self.answer(rule.status, [("Content-Type", "text/html")], rule.body)
            case "close":
                self.close_connection = True
            case "reset":
                self.reset()
            case "stall" if rule.at_byte is None:
                self.stall()
            case "conflict":
                with self.server.proxy.write_of(self.path) as is_alone:
                    if is_alone:
                        self.ask(self.server.proxy.upstream_port, body, rule)
                    else:
                        self.answer(409, [("Content-Type", "application/xml")], _error(409))
            case _:
                self.ask(self.server.proxy.upstream_port, body, rule)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def ask(self, port: int, body: bytes, rule: Rule) -> None:
        """Pass the request on and the answer back, with the fault of `rule`."""
        if rule.fault != "drip":
            time.sleep(rule.delay_s)
        if rule.fault == "ignore_range":
            del self.headers["Range"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_IDLE_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            reply = bytearray(answer.read())
            if self.command == "HEAD":  # of which the length is told and no byte is sent
                reply = bytearray(int(answer.getheader("Content-Length") or 0))
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_HEADERS]
        if rule.fault == "drop_reply":
            self.reset()
            return
        if rule.fault == "flip" and rule.at_byte is not None and rule.at_byte < len(reply):
            reply[rule.at_byte] ^= 0xFF
        if rule.fault == "drip":
            self.drip(answer.status, headers, bytes(reply), rule.delay_s)
            return
        self.answer(answer.status, headers, reply, rule.at_byte if rule.fault in ("truncate", "stall") else None)
        if rule.fault == "stall":
            self.stall()

    def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes | bytearray, sent: int | None = None
    ) -> None:
        """Answer with `body`, or with its first `sent` bytes and the length of all of it."""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True

    def drip(self, status: int, headers: list[tuple[str, str]], body: bytes, seconds: float) -> None:
        """Send the answer in 20 pieces, which takes `seconds` in all."""
        self.answer(status, headers, body, 0)
        self.close_connection = False
        step = max(1, len(body) // 20)
        for first in range(0, len(body), step):
            self.wfile.write(body[first : first + step])
            time.sleep(seconds / 20)

    def stall(self) -> None:
        self.server.proxy.closed.wait()
        self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _error(status: int) -> bytes:
    code = _ERROR_CODES.get(status, "InternalError")
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up for a test</Message></Error>".encode()
