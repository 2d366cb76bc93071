"""The buffer file: records that wait until they are stored, one line of JSON each.

Lines are only appended. Each call writes its lines by one write under a lock on the file, so that several processes can
use one file. What is written survives the end of the process. A half last line, which a crash leaves behind, stays in
the file, and readers leave it out.
"""

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from string import Template
from typing import Any

from chroma.embedding_set import EmbeddingSet
from chroma.errors import ChromaError, InvalidRecord

# By the names that embedding sets of the documentation have.
_KEYS = {"model": ("model",), "layer": ("layer",), "version": ("model_version", "version")}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Line:
    """A line of the file."""

    number: int
    """From 1."""
    content: bytes
    """Without its end."""
    next_offset: int
    """Where the next line begins. That of a line without an end, which may yet be written to, is its own beginning."""


class Snapshot:
    """The file as it was when it was last looked at. It can be read also after another process removed it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size

    def lines(self, offset: int = 0, number: int = 1) -> Iterator[Line]:
        """The lines from `offset` on, where line `number` begins."""
        rest = b""
        position = offset
        while position < self.size:
            chunk = os.pread(self.descriptor, min(_CHUNK, self.size - position), position)
            if not chunk:
                break
            position += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            for content in whole:
                offset += len(content) + 1
                yield Line(number, content, offset)
                number += 1
        if rest:
            yield Line(number, rest, offset)

    def close(self) -> None:
        os.close(self.descriptor)


class ThreadLock:
    """A lock among the threads of a process. A forked process has one of its own, which is free."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.Lock()).acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()


class Buffer:
    """A buffer file. Without a path it is a temporary file without a name, which ends with the process."""

    _descriptor = -1

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, and make it and its directory if they are not there. Raises OSError."""
        self.path = path
        self._lock = ThreadLock()
        self._process = os.getpid()
        self._descriptor = self._open()

    def append(self, lines: list[bytes]) -> None:
        """Write `lines`, each with its end, all of them or none. Raises OSError, for instance if the disk is full."""
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            content = b"".join(lines)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                content = b"\n" + content  # a crash left half a line: it stays on a line of its own
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:])
            except BaseException:
                os.ftruncate(descriptor, size)
                raise

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The file as it is now."""
        with self._locked() as descriptor:
            taken = Snapshot(os.dup(descriptor), os.fstat(descriptor).st_size)
        try:
            yield taken
        finally:
            taken.close()

    def remove(self, read: Snapshot) -> bool:
        """Remove the file that was read. If it has more by now, return False: then `read` has that too."""
        with self._alone():
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # the same file, if that is still at its path
            try:
                size = os.fstat(read.descriptor).st_size
                if self.path and not _is_at(read.descriptor, self.path):
                    return True  # another process stored and removed it; what is there now is not this one
                if size > read.size:
                    read.size = size
                    return False
                if self.path:
                    self.path.unlink()
                else:
                    os.ftruncate(read.descriptor, 0)
                return True
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> bool:
        """Close the file. It cannot be used any more. Return whether records end with it, which had no path."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return False
        try:
            return self.path is None and self._process == os.getpid() and os.fstat(descriptor).st_size > 0
        finally:
            os.close(descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _open(self) -> int:
        if self.path is None:
            descriptor, name = tempfile.mkstemp()
            Path(name).unlink()
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
            return descriptor
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out other threads, and let a forked process open the file itself.

        A lock of a file belongs to the open file, which a forked process shares: it would get the lock that its parent
        holds, and release it. Raises ChromaError if the file is closed, or has no path to open it by.
        """
        with self._lock:
            if self._descriptor < 0:
                raise ChromaError("the buffer file is closed")
            if self._process != os.getpid():
                if self.path is None:
                    raise ChromaError("this process was forked; call bufferlocal() before, so that it can use the file")
                self._reopen()
                self._process = os.getpid()
            yield

    def _reopen(self) -> None:
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the open file, locked against other threads and processes."""
        with self._alone():
            while True:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                if self.path is None or _is_at(self._descriptor, self.path):
                    break
                # Another process stored and removed it meanwhile: what is written now begins a new one.
                self._reopen()
            try:
                yield self._descriptor
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is the open file, and not another one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def fill_in(file: str | os.PathLike[str], embedding_set: EmbeddingSet | None, now: datetime) -> Path:
    """The path with `$model`, `$layer`, `$version` of the embedding set and `$timestamp` filled in.

    Characters that would make directories are replaced by `-`. Raises InvalidRecord for another name, or one that the
    embedding set does not have.
    """
    template = Template(os.fspath(file))
    names = [match["named"] or match["braced"] for match in template.pattern.finditer(template.template)]
    values = {"timestamp": now.isoformat(timespec="microseconds")}
    described: Mapping[str, Any] = embedding_set.described if embedding_set else {}
    for name in filter(None, names):
        if name not in (*_KEYS, "timestamp"):
            nearest = get_close_matches(name, (*_KEYS, "timestamp"), n=1, cutoff=0)[0]
            raise InvalidRecord(f"${name} in {template.template!r} is unknown; the nearest is ${nearest}")
        if name in _KEYS:
            value = next((described[key] for key in _KEYS[name] if key in described), None)
            if value is None:
                raise InvalidRecord(f"${name} in {template.template!r}: the embedding set has no {_KEYS[name][0]!r}")
            values[name] = str(value).replace("/", "-").replace("\0", "-")
    try:
        return Path(template.substitute(values))
    except ValueError as error:
        raise InvalidRecord(f"{template.template!r}: {error}; write $$ for a dollar sign") from error
