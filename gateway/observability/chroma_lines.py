"""Chroma's output as the gateway's own log lines, one line an event.

Chroma writes each event in several lines (`rust/tracing/src/init_tracer.rs`, `init_stdout_layer`):

      2026-11-21T05:45:07.141011Z  INFO  Frontend server listening on address, addr: 127.0.0.1:8001
        at rust/frontend/src/server.rs:416
        in HTTP request with http.method: GET, …

Each event is one write. So a read ends with a whole event, or within a line of one that is longer than a pipe takes.

- An event keeps its time. Its level is Chroma's, but `debug` for the routine events of a request: there is one for each
  request, and the gateway counts requests itself.
- The banner that `chroma run` prints when it starts (`rust/cli/src/commands/run.rs`) is dropped, and so is its
  configuration file.
- Any other text, such as a panic, has no time and no level. It gets the time at which it was read, is at least a
  warning, and is written at every log level.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from gateway.observability.lines import LEVELS, log_line

_ESCAPES = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_HEADER = re.compile(r"\s*(\d{4}-\d\d-\d\dT[\d:.]+Z)\s+(TRACE|DEBUG|INFO|WARN|ERROR)\s+(.*)", re.DOTALL)
_LEVELS = {"TRACE": "debug", "DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "error"}
_IN_REQUEST = "HTTP request"  # the span's name, rust/tracing/src/tower_tracing.rs
_BANNER = re.compile(
    r"[\s(#.*]+|Saving data to: .*|Connect to Chroma at: .*|Getting started guide: .*"
    r"|.*To deploy your DB - try Chroma Cloud!|- Sign up: .*|- Copy your data to Cloud: .*"
    r"|={10}|\{.*\"persist_path\": .*\}"  # the configuration file (`rust/frontend/src/config.rs`, `load_from_path`)
)
_MAX_EVENT_BYTES = 256 * 1024


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class ChromaLines:
    """Turns the output of one Chroma process into log lines, piece by piece."""

    def __init__(self, *, as_json: bool = True, level: str = "info", now: Callable[[], str] = _now) -> None:
        """`as_json` and `level` are those of the gateway's own lines; `now` tells the time as ISO 8601 in UTC."""
        self._as_json, self._now = as_json, now
        self._dropped = frozenset(LEVELS[: LEVELS.index(level)])
        self._rest = b""

    def take(self, data: bytes) -> bytes:
        """The lines for `data` and for what was left before it. An unfinished event is kept for the next call."""
        data = self._rest + data
        # An event ends with an empty line. An unfinished line keeps the whole event that it belongs to.
        end = len(data) if data.endswith(b"\n") else data.rfind(b"\n\n") + 1
        if len(data) - end > _MAX_EVENT_BYTES:
            end = len(data)
        self._rest = data[end:]
        return b"".join(self._lines(data[:end]))

    def end(self) -> bytes:
        """The line for what is left, after the process ended."""
        data, self._rest = self._rest, b""
        return b"".join(self._lines(data))

    def _lines(self, data: bytes) -> Iterator[bytes]:
        event: list[str] = []
        for raw in data.split(b"\n"):
            line = _ESCAPES.sub(b"", raw).decode("utf-8", "replace").rstrip()
            separates = not line or _BANNER.fullmatch(line) is not None
            if separates or _HEADER.fullmatch(line):
                yield self._line(event)
                event = []
            if not separates:
                event.append(line)
        yield self._line(event)

    def _line(self, event: list[str]) -> bytes:
        if not event:
            return b""
        match = _HEADER.fullmatch(event[0])
        if match is None:
            level = "error" if "panicked at" in event[0] else "warning"
            message = "\n".join(event)
            return log_line(
                as_json=self._as_json, timestamp=self._now(), level=level, message=message, program="chroma"
            )
        fields, spans = {}, []
        for line in event[1:]:
            word, _, rest = line.strip().partition(" ")
            if word == "at":
                fields["at"] = rest
            else:
                spans.append(line.strip().removeprefix("in "))
        if spans:
            fields["in"] = "; ".join(spans)
        level = _LEVELS[match[2]]
        if level == "info" and any(span.startswith(_IN_REQUEST) for span in spans):
            level = "debug"
        if level in self._dropped:
            return b""
        return log_line(
            as_json=self._as_json, timestamp=match[1], level=level, message=match[3], program="chroma", **fields
        )
