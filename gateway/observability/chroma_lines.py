"""Chroma's own lines in the form of ours: one JSON object per event. Pure.

Chroma writes events of several lines for people (`rust/tracing/src/init_tracer.rs`):

      2026-11-21T05:45:07.141011Z  INFO  Frontend server listening on address, addr: 127.0.0.1:8001
        at rust/frontend/src/server.rs:416
        in HTTP request with http.method: GET, …

and, when it starts, a picture. Each event is written at once, so what a read ends with is whole, save for an
unfinished line. Lines that are JSON objects are ours already: the same process was `chroma-gateway chroma` before.
Where that spoke no JSON, as GATEWAY_LOG_FORMAT may say, everything is left as it is.
"""

import json
import re

_ESCAPES = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_HEADER = re.compile(r"\s*(\d{4}-\d\d-\d\dT[\d:.]+Z)\s+(TRACE|DEBUG|INFO|WARN|ERROR)\s+(.*)", re.DOTALL)
_LEVELS = {"TRACE": "debug", "DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "error"}
SEVERITIES = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "critical": "CRITICAL",
}
"""Google Cloud's name for each of our levels."""
_MAX_LINE_BYTES = 256 * 1024


class ChromaLines:
    """Turns what one Chroma writes into lines of ours, piece by piece."""

    def __init__(self) -> None:
        self._rest = b""
        self._speaks_json = False

    def take(self, data: bytes) -> bytes:
        """What can be said of `data` so far, as whole lines."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        if len(self._rest) > _MAX_LINE_BYTES:
            end, self._rest = len(data), b""
        return self._said(data[:end])

    def end(self) -> bytes:
        """What is left when it will say no more."""
        data, self._rest = self._rest, b""
        return self._said(data)

    def _said(self, data: bytes) -> bytes:
        said: list[bytes] = []
        event: list[str] = []

        def end_event() -> None:
            if event:
                said.append(_rendered(event))
                event.clear()

        lines = data.split(b"\n")
        for raw in lines if lines[-1] else lines[:-1]:
            self._speaks_json = self._speaks_json or _is_ours(raw.decode("utf-8", "replace"))
            if not self._speaks_json:
                said.append(raw)
                continue
            line = _ESCAPES.sub(b"", raw).decode("utf-8", "replace").rstrip()
            if not line or _HEADER.fullmatch(line) or _is_ours(line):
                end_event()
            if _is_ours(line):
                said.append(line.encode())
            elif line:
                event.append(line)
        end_event()
        return b"".join(line + b"\n" for line in said)


def _is_ours(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


def _rendered(lines: list[str]) -> bytes:
    level, found = "info", {}
    if match := _HEADER.fullmatch(lines[0]):
        level = _LEVELS[match[2]]
        found = {"timestamp": match[1], "event": match[3]}
        for line in lines[1:]:
            word, _, rest = line.strip().partition(" ")
            if word == "at":
                found["at"] = rest
            else:
                found["in"] = f"{found['in']}; {line.strip()}" if "in" in found else line.strip().removeprefix("in ")
    else:
        found = {"event": "\n".join(lines)}
        if "panicked at" in lines[0]:
            level = "error"
    found |= {"message": found["event"], "level": level, "severity": SEVERITIES[level], "program": "chroma"}
    return json.dumps(found).encode()
