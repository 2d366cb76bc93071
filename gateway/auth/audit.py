"""The audit log: who did what, one JSON object per line.

    {"time": "…Z", "who": "crawler", "role": "writer", "address": "10.0.0.7", "method": "DELETE",
     "path": "/api/v2/…", "action": "delete_collection", "status": 200, "request_id": "…"}

It has the changes by `/admin/*`, and the requests on the data path that destroy or rename something, refused or not. It
never has a token, a query or a body. A thread writes it, so a slow disk does not delay requests.
"""

import json
import os
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import structlog

from gateway.errors import ConfigError

log = structlog.get_logger()

_CLOSE_TIMEOUT_S = 2.0
_MAX_QUEUED_LINES = 100_000
# A path may be as long as a head, 64 KiB. No name in Chroma is so long, and such lines could fill the disk.
_MAX_PATH_CHARACTERS = 2000


class Audit:
    """Appends to `file` (created with mode 0600), or to stdout if it is None."""

    def __init__(self, file: Path | None) -> None:
        """Raises ConfigError if the file cannot be opened for appending."""
        try:
            self._fd = (
                os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                if file
                else os.dup(sys.__stdout__.fileno())  # type: ignore[union-attr]
            )
        except OSError as error:
            raise ConfigError(
                f"the audit cannot be written to {file}: {error.strerror}", "see GATEWAY_AUDIT_FILE"
            ) from error
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.lost = 0
        """How many lines could not be written."""
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def record(
        self,
        *,
        who: str,
        role: str,
        address: str,
        method: str,
        path: str,
        action: str,
        status: int,
        request_id: str,
    ) -> None:
        """Queue one line for the writing thread. Never blocks and never raises; counts in `lost` what it must drop."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "stream": "audit",
            "who": who,
            "role": role,
            "address": address,
            "method": method,
            "path": path if len(path) <= _MAX_PATH_CHARACTERS else f"{path[:_MAX_PATH_CHARACTERS]}…",
            "action": action,
            "status": status,
            "request_id": request_id,
        }
        if self._lines.qsize() < _MAX_QUEUED_LINES:
            self._lines.put(json.dumps(line).encode() + b"\n")
        else:
            self.lost += 1

    def close(self) -> None:
        """Write the queued lines. Waits for at most `_CLOSE_TIMEOUT_S`."""
        self._lines.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError as error:
                if not self.lost:
                    log.error("audit log not writable", cause=str(error))
                self.lost += 1
