"""The buffer file keeps whole lines, whatever happens between them."""

import fcntl
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

import chroma
from chroma import ChromaError, EmbeddingSet, InvalidRecord, TrainingSession
from chroma.buffer import Buffer, Snapshot, fill_in
from chroma.records import parse_line

SET = {"model": "a/b", "layer": "context", "model_version": "7"}


def contents(buffer: Buffer) -> list[bytes]:
    with buffer.snapshot() as snapshot:
        return [line.content for line in snapshot.lines()]


def test_names_are_filled_in() -> None:
    """`$model`, `$layer`, `$version`, `$timestamp`; a slash in a value makes no directory."""
    now = datetime.fromisoformat("2022-10-18T16:34:28.614077")
    path = fill_in("/tmp/chroma-$model-$layer-${version}-$timestamp$$.jsonl", EmbeddingSet(SET), now)
    assert path == Path("/tmp/chroma-a-b-context-7-2022-10-18T16:34:28.614077$.jsonl")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("$modle", "the nearest is \\$model"), ("$version", "no 'model_version'"), ("a$", "write \\$\\$")],
)
def test_a_name_that_cannot_be_filled_in_is_an_error(name: str, expected: str) -> None:
    """No file of a strange name appears."""
    with pytest.raises(InvalidRecord, match=expected):
        fill_in(name, EmbeddingSet({"model": "a"}), datetime.fromisoformat("2022-10-18"))


def test_bufferlocal_comes_before_the_first_log(tmp_path: Path) -> None:
    """Otherwise the file would lack what was logged."""
    session = TrainingSession(embedding_set=SET)
    session.log(input_uri="a", embedding=[1.0])
    with pytest.raises(ChromaError, match="before the first log"):
        session.bufferlocal(tmp_path / "buffer")


KILLED = """
import os, sys
import chroma

session = chroma.TrainingSession(embedding_set={"model": "a"})
session.bufferlocal(sys.argv[1])
for number in range(10):
    session.log(input_uri=str(number), embedding=[float(number), 1.0])
os.kill(os.getpid(), 9)
"""


FORKED = """
import os, sys
import chroma

session = chroma.TrainingSession(embedding_set={"model": "a"})
session.bufferlocal(sys.argv[1])
workers = []
for worker in range(2):
    if not (pid := os.fork()):
        for number in range(100):
            session.log(input_uri=f"{worker} {number}", embedding=[float(number)] * 2000)
        os._exit(0)
    workers.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]

temporary = chroma.TrainingSession(embedding_set={"model": "a"})
temporary.log(input_uri="a", embedding=[1.0])
if not (pid := os.fork()):
    try:
        temporary.log(input_uri="b", embedding=[1.0])
    except chroma.ChromaError as error:
        os._exit("bufferlocal" not in str(error))
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
"""


def run(script: str, path: Path) -> int:
    env = os.environ | {"PYTHONPATH": str(Path(chroma.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", script, path], env=env, check=False).returncode


def test_forked_workers_write_to_the_file_of_their_parent(tmp_path: Path) -> None:
    """As those of a DataLoader. A temporary file is the parent's alone, and the error says what to do."""
    path = tmp_path / "buffer"
    assert run(FORKED, path) == 0
    records = [parse_line(line) for line in contents(Buffer(path))]
    logged = sorted(record.input_uri for record in records if record)
    assert logged == sorted(f"{worker} {number}" for worker in range(2) for number in range(100))


def test_what_was_logged_survives_kill(tmp_path: Path) -> None:
    """Each log() is in the file when it returns."""
    path = tmp_path / "buffer"
    assert run(KILLED, path) == -signal.SIGKILL
    records = [parse_line(line) for line in contents(Buffer(path))]
    assert [record.input_uri for record in records if record] == [str(number) for number in range(10)]


def test_a_crash_at_any_byte_costs_the_half_line_alone(tmp_path: Path) -> None:
    """Whatever was written of the last line, the lines before and those that are appended later are whole."""
    whole = tmp_path / "whole"
    with TrainingSession(embedding_set=SET) as session:
        session.bufferlocal(whole)
        for number in range(3):
            session.log(input_uri=f"{number}", embedding=[float(number)])
    lines = whole.read_bytes().splitlines(keepends=True)
    before, last = b"".join(lines[:2]), lines[2]
    for cut in range(len(last) + 1):
        path = tmp_path / "cut"
        path.write_bytes(before + last[:cut])
        with TrainingSession(embedding_set=SET) as session:
            session.bufferlocal(path)
            session.log(input_uri="later", embedding=[9.0])
        found = [record.input_uri for line in contents(Buffer(path)) if (record := parse_line(line))]
        assert found == ["0", "1", *(["2"] if cut >= len(last) - 1 else []), "later"], cut


def append_many(path: Path, name: str, number: int) -> None:
    buffer = Buffer(path)
    for each in range(number):
        buffer.append([f"{name} {each} {'x' * 9000}\n".encode(), f"{name} {each} second\n".encode()])


def test_two_processes_write_whole_lines_to_one_file(tmp_path: Path) -> None:
    """And the lines of one call stay together."""
    path = tmp_path / "buffer"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=append_many, args=(path, name, 300)) for name in ("a", "b")]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    lines = [line.split() for line in contents(Buffer(path))]
    assert len(lines) == 1200
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first[:2], len(first[2]), second[2]) == (second[:2], 9000, b"second")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """The call fails, and the file is as it was before."""
    path = tmp_path / "buffer"
    buffer = Buffer(path)
    buffer.append([b"one\n"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            buffer.append([b"x" * 20_000 + b"\n"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"one\n"


def test_lines_that_were_appended_meanwhile_are_not_removed(tmp_path: Path) -> None:
    """The file stays, and the snapshot has them now."""
    path = tmp_path / "buffer"
    one, other = Buffer(path), Buffer(path)
    one.append([b"one\n"])
    with one.snapshot() as snapshot:
        other.append([b"other\n"])
        assert not one.remove(snapshot)
        assert [line.content for line in snapshot.lines()] == [b"one", b"other"]
        assert one.remove(snapshot)
    assert not path.exists()


def test_a_removed_file_begins_anew(tmp_path: Path) -> None:
    """A process that has it open writes to a new one, which nobody else removes for the old one's sake."""
    path = tmp_path / "buffer"
    one, other = Buffer(path), Buffer(path)
    one.append([b"one\n"] * 10)
    with one.snapshot() as first, other.snapshot() as second:
        assert one.remove(first)
        other.append([b"later\n"])
        assert other.remove(second)  # it is gone already
    assert contents(one) == [b"later"]


def test_a_temporary_buffer_is_used_again() -> None:
    """Reading and removing what was read leaves it ready for more."""
    buffer = Buffer()
    buffer.append([b"one\n"])
    with buffer.snapshot() as snapshot:
        list(snapshot.lines())
        buffer.append([b"two\n"])
        assert not buffer.remove(snapshot)
        assert buffer.remove(snapshot)
    buffer.append([b"three\n"])
    assert contents(buffer) == [b"three"]


def test_a_long_line_is_read_whole(tmp_path: Path) -> None:
    """Also where it is longer than what is read at once."""
    buffer = Buffer(tmp_path / "buffer")
    buffer.append([b"a" * 3_000_000 + b"\n", b"b\n"])
    assert [len(line) for line in contents(buffer)] == [3_000_000, 1]


def append(buffer: Buffer, _: Snapshot) -> None:
    buffer.append([b"forked\n"])


def read(buffer: Buffer, _: Snapshot) -> None:
    contents(buffer)


def remove(buffer: Buffer, snapshot: Snapshot) -> None:
    buffer.remove(snapshot)


def raised_in_a_fork(use: Callable[[Buffer, Snapshot], None], buffer: Buffer, snapshot: Snapshot) -> type | None:
    """What `use` raises in a forked process that does not wait for locks of the file."""
    expected = (None, BlockingIOError, ChromaError)
    process = os.fork()
    if process == 0:
        status = len(expected)
        try:
            signal.alarm(10)
            flock = fcntl.flock
            fcntl.flock = lambda descriptor, operation: flock(descriptor, operation | fcntl.LOCK_NB)
            use(buffer, snapshot)
            status = 0
        except BaseException as error:
            status = expected.index(type(error))
        finally:
            os._exit(status)
    return expected[os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("use", [append, read, remove])
def test_a_forked_process_does_not_get_the_lock_of_its_parent(
    tmp_path: Path, use: Callable[[Buffer, Snapshot], None]
) -> None:
    """It waits for the file, and not for a thread that it does not have."""
    buffer = Buffer(tmp_path / "buffer")
    buffer.append([b"one\n"])
    with buffer.snapshot() as snapshot:
        with buffer._locked():
            assert raised_in_a_fork(use, buffer, snapshot) is BlockingIOError
        assert raised_in_a_fork(use, buffer, snapshot) is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("use", [append, read, remove])
def test_a_forked_process_does_not_use_a_temporary_file(use: Callable[[Buffer, Snapshot], None]) -> None:
    """Its parent has it open too, and nothing else keeps them apart."""
    buffer = Buffer()
    buffer.append([b"one\n"])
    with buffer.snapshot() as snapshot:
        assert raised_in_a_fork(use, buffer, snapshot) is ChromaError
    assert contents(buffer) == [b"one"]
