"""Kill `save` at each step, then save again: `python killed_at_each_step.py DIRECTORY`, with a `chroma.json` there.

A step is the moment before a request that writes, the moment after it was answered, and the same of removing the file.
Between two of them nothing changes, so a kill there is the same. Each process that is killed is forked from this one.
Prints a line of JSON for each step.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from chroma import TrainingSession, upload
from chroma.records import parse_line

RECORDS = 9
# Three requests for nine records.
upload.BODY_BYTES = 1600


def log(path: Path, embedding_set: dict[str, Any]) -> None:
    with TrainingSession(embedding_set=embedding_set) as session:
        session.bufferlocal(path)
        for number in range(RECORDS):
            session.log(input_uri=str(number), embedding=[float(number), 1.0, 2.0, 3.0])


def save(path: Path, embedding_set: dict[str, Any], killed_at: int) -> None:
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            reads = str(args[-1]).endswith("/get") or "GET" in args
            if not reads:
                step()
            result = function(*args, **kwargs)
            if not reads:
                step()
            return result

        return wrapper

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == killed_at:
            os._exit(9)

    httpx.Client.request = counted(httpx.Client.request)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    with TrainingSession(embedding_set=embedding_set) as session:
        session.bufferlocal(path)
        session.save()
    os._exit(0)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(directory: Path) -> None:
    os.chdir(directory)
    killed_at = 1
    while True:
        embedding_set = {"killed": str(directory), "at": killed_at}
        path = directory / f"buffer-{killed_at}"
        log(path, embedding_set)
        whole = path.read_bytes()
        if not (pid := os.fork()):
            save(path, embedding_set, killed_at)
        killed = status_of(pid) == 9
        left = path.read_bytes() if path.exists() else b""
        assert left in (whole, b"")
        report = {"step": killed_at, "set": embedding_set, "file": bool(left)}
        report["ids"] = [record.id for line in whole.splitlines() if (record := parse_line(line))]
        report["again"] = 0
        if left:
            if not (pid := os.fork()):
                save(path, embedding_set, -1)
            report["again"] = status_of(pid)
            assert not path.exists()
        print(json.dumps(report), flush=True)
        if not killed:
            return
        killed_at += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
