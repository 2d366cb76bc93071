"""One log line: a JSON object, or text for a terminal. Imports the standard library alone, since supervisord loads it.

`gateway.observability.logs` gives structlog's lines the same fields and the same form.
"""

import json

LEVELS = ("debug", "info", "warning", "error", "critical")
"""In rising order, by the names that `GATEWAY_LOG_LEVEL` has."""

SEVERITIES = {level: level.upper() for level in LEVELS}
"""Google Cloud's name for each level."""


def log_line(*, as_json: bool, timestamp: str, level: str, message: str, program: str, **fields: str) -> bytes:
    """One line, with its newline. `timestamp` is UTC in ISO 8601; `fields` follow in their order."""
    if as_json:
        line = {"timestamp": timestamp, "level": level, "severity": SEVERITIES[level], "program": program}
        return json.dumps(line | {"message": message} | fields).encode() + b"\n"
    pairs = "".join(f" {name}={value}" for name, value in (fields | {"program": program}).items())
    return f"{timestamp} [{level:<9}] {message:<30}{pairs}\n".encode()
