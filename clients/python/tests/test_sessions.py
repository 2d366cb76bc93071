"""Sessions without a server: threads, and the end."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chroma import ChromaError, MixedEmbeddingSets, QuerySession, TrainingSession, sessions

SET = {"model": "a"}


def in_two_threads(function: Callable[[int], None]) -> list[Exception]:
    """Call it with 0 and 1 at once. Returns what was raised."""
    raised: list[Exception] = []

    def run(number: int) -> None:
        try:
            function(number)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return raised


def wait_for_the_other(monkeypatch: pytest.MonkeyPatch, name: str, timeout_s: float) -> None:
    """A function of `sessions` returns when two threads are in it, or only one comes in time."""
    function, both = getattr(sessions, name), threading.Barrier(2)

    def waiting(*args: Any) -> Any:
        result = function(*args)
        try:
            both.wait(timeout_s)
        except threading.BrokenBarrierError:
            pass
        return result

    monkeypatch.setattr(sessions, name, waiting)


def logged(session: TrainingSession) -> int:
    assert session._buffer is not None
    with session._buffer.snapshot() as snapshot:
        return len(list(snapshot.lines()))


def test_threads_that_log_first_share_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is in a file that `save` does not read."""
    wait_for_the_other(monkeypatch, "Buffer", 0.5)
    session = TrainingSession(embedding_set=SET)
    assert in_two_threads(lambda number: session.log(input_uri=str(number), embedding=[1.0])) == []
    assert logged(session) == 2


def test_threads_that_log_first_have_one_embedding_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one gets an error, and not `save`."""
    wait_for_the_other(monkeypatch, "make_records", 10)
    session = TrainingSession()
    raised = in_two_threads(lambda number: session.log(input_uri="u", embedding=[1.0], embedding_set={"model": number}))
    assert [type(each) for each in raised] == [MixedEmbeddingSets]
    assert logged(session) == 1


def test_a_closed_session_keeps_nothing_more(tmp_path: Path) -> None:
    """It says so, and does not write to a file that nobody saves."""
    session = TrainingSession(embedding_set=SET)
    path = session.bufferlocal(tmp_path / "buffer")
    session.log(input_uri="u", embedding=[1.0])
    session.close()
    session.close()
    content = path.read_bytes()
    uses: list[Callable[[], object]] = [
        lambda: session.log(input_uri="v", embedding=[1.0]),
        lambda: session.store(input_uri="v", embedding=[1.0]),
        session.save,
        lambda: session.bufferlocal(tmp_path / "another"),
    ]
    for use in uses:
        with pytest.raises(ChromaError, match="closed"):
            use()
    assert [each.name for each in tmp_path.iterdir()] == ["buffer"]
    assert path.read_bytes() == content
    with QuerySession(embedding_set=SET) as query:
        pass
    with pytest.raises(ChromaError, match="closed"):
        query.log(input_uri="v", embedding=[1.0])


def test_close_warns_of_records_that_end_with_the_session() -> None:
    """Those of a temporary file. Without records there is nothing to say."""
    session = TrainingSession(embedding_set=SET)
    session.log(input_uri="u", embedding=[1.0])
    with pytest.warns(UserWarning, match="did not save is lost"):
        session.close()
    TrainingSession(embedding_set=SET).close()
