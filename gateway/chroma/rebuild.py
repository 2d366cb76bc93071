"""An index built anew from vectors: by Chroma's own engine, in a directory and a process of its own.

The engine is asked as an embedded client does (`chromadb/api/rust.py`, `RustBindingsAPI`). Vectors of a cosine
collection lie normalized in the files. They are built under `ip`, which is the same graph and leaves every bit alone,
and their lengths are put beside them. So what comes out is what was in.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.chroma.disk import DATABASE, ID_MAP, INDEX_FILES, LENGTH, LEVEL0
from gateway.chroma.header import read_header
from gateway.chroma.id_map import read_id_map
from gateway.chroma.level0 import scan_level0
from gateway.chroma.segments import COSINE, Segment
from gateway.errors import GatewayError
from gateway.files import sync_directory, sync_file

# Each call is one step: Chroma applies it, in parallel, and writes the index. Larger ones need more memory.
_MAX_BATCH = 2000
_WAIT_S = 60.0
_BUILD = """
import json, sys
from chromadb_rust_bindings import Bindings, MigrationHash, MigrationMode, SqliteDBConfig
directory, database, configuration = sys.argv[1:4]
config = SqliteDBConfig(hash_type=MigrationHash.MD5, migration_mode=MigrationMode.Apply, url=database)
bindings = Bindings(allow_reset=False, sqlite_db_config=config, persist_path=directory, hnsw_cache_size=1)
home = ("default_tenant", "default_database")
collection = str(bindings.create_collection("rebuilt", configuration, None, None, False, *home).id)
while line := sys.stdin.buffer.readline():
    step = json.loads(line)
    if step is None:
        break
    ids, dimension = step["ids"], step["dimension"]
    raw = memoryview(sys.stdin.buffer.read(4 * dimension * len(ids))).cast("f")
    vectors = [raw[start : start + dimension].tolist() for start in range(0, len(raw), dimension)]
    write = bindings.update if step["padding"] else bindings.upsert
    write(collection, ids, vectors, None, None, None, *home)
    print(len(ids), flush=True)
else:
    sys.exit("the vectors ended before the index did")
"""


class Part(NamedTuple):
    """Vectors of one source: `vectors(start, stop)` are those of `ids[start:stop]`, float32, (n, dimension).

    For cosine they are normalized, and `lengths` are what to multiply them with.
    """

    ids: Sequence[str]
    vectors: Callable[[int, int], npt.NDArray[np.float32]]
    lengths: npt.NDArray[np.float32] | None


def build_index(
    scratch: Path,
    segment: Segment,
    dimension: int,
    parts: Sequence[Part],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Build the index of `parts` in `scratch`, an empty directory; return the directory with its files.

    Takes as long as Chroma takes to index the vectors. `progress` is told how many are done, of how many. Memory: one
    step here; the index in the other process. Raises GatewayError if Chroma does not build it. Nothing else is touched.
    """
    total = sum(len(part.ids) for part in parts)
    steps = -(-total // _MAX_BATCH)
    batch = max(2, -(-total // steps))
    told = {
        "space": "ip" if segment.space == COSINE else segment.space,
        "max_neighbors": segment.neighbors,
        "ef_construction": segment.ef_construction,
        "sync_threshold": batch,
        "batch_size": min(100, batch),
    }
    command = [sys.executable, "-c", _BUILD, str(scratch), str(scratch / DATABASE), json.dumps({"hnsw": told})]
    with (scratch / "said").open("w+b") as said:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own text
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        try:
            assert process.stdin and process.stdout  # noqa: PT018
            _feed(process.stdin, process.stdout, parts, dimension, batch, total, progress)
            process.stdin.close()
            process.wait(_WAIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            process.kill()
            process.wait()
            raise _failed(said, str(error)) from error
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what it did not read is still in the buffer
                    if pipe:
                        pipe.close()
        if process.returncode:
            raise _failed(said, f"status {process.returncode}")
        found = [each for each in scratch.iterdir() if (each / ID_MAP).exists()]
        if len(found) != 1:
            raise _failed(said, "it wrote no index")
    if segment.space == COSINE:
        _write_lengths(found[0], parts)
    return found[0]


def _feed(
    to: IO[bytes],
    answers: IO[bytes],
    parts: Sequence[Part],
    dimension: int,
    batch: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    done, waiting, pieces = 0, 0, list[tuple[Sequence[str], npt.NDArray[np.float32]]]()

    def send(*, padding: bool = False) -> None:
        nonlocal done, waiting
        ids = [each for piece, _ in pieces for each in piece]
        step = {"ids": ids, "dimension": dimension, "padding": padding}
        to.write(json.dumps(step).encode() + b"\n")
        for _, vectors in pieces:
            to.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        to.flush()
        if not answers.readline():
            raise OSError("it ended")
        done, waiting = done + len(ids), 0
        pieces.clear()
        if progress and not padding:
            progress(done, total)

    for part in parts:
        start = 0
        while start < len(part.ids):
            stop = min(len(part.ids), start + batch - waiting)
            pieces.append((part.ids[start:stop], part.vectors(start, stop)))
            waiting += stop - start
            start = stop
            if waiting == batch:
                send()
    if waiting:
        lacking = batch - waiting
        send()
        # Updates of records that are not there: nothing changes, and the number is full at which Chroma writes.
        pieces.append(([f"padding {number}" for number in range(lacking)], np.ones((lacking, dimension), np.float32)))
        send(padding=True)
    to.write(b"null\n")
    to.flush()


def _write_lengths(directory: Path, parts: Sequence[Part]) -> None:
    header = read_header(directory)
    if header is None:
        raise GatewayError("Chroma wrote no header")
    known = {
        each: part.lengths[place] for part in parts if part.lengths is not None for place, each in enumerate(part.ids)
    }
    by_label = {label: known[each] for each, label in read_id_map(directory / ID_MAP).id_to_label.items()}
    level0 = scan_level0(directory / LEVEL0, header.layout, header.elements)
    lengths = np.ones(header.elements, "<f4")
    lengths[level0.number] = [by_label[label] for label in level0.label.tolist()]
    lengths.tofile(directory / LENGTH)


def _failed(said: IO[bytes], why: str) -> GatewayError:
    said.seek(0)
    last = said.read()[-500:].decode(errors="replace").strip()
    return GatewayError(f"Chroma did not build the index: {why}: {last}", "is there room in the data directory?")


def sync_files(directory: Path) -> None:
    """Make the files of an index durable: hnswlib never does (`hnswalg.h`, `persistDirty`). Raises OSError."""
    for name in sorted(INDEX_FILES):
        with (directory / name).open("rb") as file:
            sync_file(file)
    sync_directory(directory)
