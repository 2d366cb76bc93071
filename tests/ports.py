"""Ports and listeners for servers that a test starts."""

import fcntl
import os
import random
import socket
from pathlib import Path

# Below those that the kernel gives to outgoing connections and to "any port" (32768 and above, by default), so that
# none of them takes a port between the moment it is chosen and the moment a server listens on it.
_FIRST, _LAST = 12_000, 32_000
# Not in TMPDIR, which other runs of the tests do not share.
_CLAIMS = Path("/tmp") / f"test-ports-{os.getuid()}"
_claimed: list[int] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on. No other process that asks this gets it while this one lives."""
    _CLAIMS.mkdir(exist_ok=True)
    while True:
        port = random.randrange(_FIRST, _LAST)
        claim = os.open(_CLAIMS / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(claim)
        else:
            _claimed.append(claim)  # held until the process ends
            return port


def small_listener(host: str = "127.0.0.1", port: int = 0, backlog: int = 128) -> socket.socket:
    """A listener whose connections take little that nobody reads. By itself a kernel takes as much as 32 MiB."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=backlog)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)  # its connections inherit it
    return listener
