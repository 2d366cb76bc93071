"""What is kept of manifests is small, and says exactly which packs they name."""

import hashlib
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot import history as module
from gateway.snapshot.history import History, decode, encode
from gateway.snapshot.model import Manifest, SnapshotCollection
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha

IDS = (OLDER, ID, NEWER)
steps = st.lists(
    st.tuples(st.sampled_from(IDS), st.one_of(st.none(), st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=4))),
    max_size=20,
)


def made(snapshot_id: str, packs: list[bytes]) -> Manifest:
    """A manifest without files. It may name a pack twice: it is not trusted."""
    whole = manifest(snapshot_id, (b"database",))
    named = manifest(snapshot_id, tuple(packs)).packs if packs else ()
    return whole.model_copy(update={"packs": named})


@given(steps)
def test_packs_are_named_as_long_as_a_manifest_names_them(steps: list[tuple[str, list[bytes] | None]]) -> None:
    """For any order in which manifests are read, read again and forgotten."""
    history, model = History(), dict[str, list[bytes]]()
    for snapshot_id, packs in steps:
        if packs is None:
            history.forget(snapshot_id)
            model.pop(snapshot_id, None)
        else:
            history.add(made(snapshot_id, packs))
            model[snapshot_id] = packs
        named = {sha(pack) for packs in model.values() for pack in packs}
        assert {name for name in map(sha, (b"a", b"b", b"c")) if history.names(name)} == named
        assert set(history.named_but_not_in([sha(b"a")])) == named - {sha(b"a")}
        assert history.newest_id() == max(model, default=None)
        assert set(history.ids()) == set(model)
        history.set_missing([sha(b"b")])
        assert set(history.broken) == {each for each, packs in model.items() if b"b" in packs}


def test_a_changed_object_is_not_the_one_that_was_read() -> None:
    """A tag that was not seen yet belongs to what was written here, if it has the same size."""
    history = History()
    history.add(manifest(ID))
    assert history.is_current(ID, (10, "tag"))
    assert history.is_current(ID, (10, "tag"))
    assert not history.is_current(ID, (10, "other"))
    assert not history.is_current(NEWER, (10, "tag"))
    history.add(manifest(NEWER), (10, ""))
    assert not history.is_current(NEWER, (11, "tag"))
    assert history.is_current(NEWER, (10, "tag"))


def test_summaries_survive_as_an_object() -> None:
    """Those that a list has shown. A changed byte is noticed, wherever it is, and so is what only looks like one."""
    history = History()
    for number, snapshot_id in enumerate((OLDER, NEWER)):
        history.add(manifest(snapshot_id, (b"shared", snapshot_id.encode())), (number, f"tag-{number}"))
    history.add(manifest(ID))
    data = encode(history.summaries)
    assert decode(data) == {each: history[each] for each in (OLDER, NEWER)}
    for place in (0, 40, len(data) - 1):
        with pytest.raises(ValueError, match="digest"):
            decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'{"format": 2, "packs": [], "snapshots": {}}',
        b'{"format": 1, "packs": ["ab"], "snapshots": {}}',
        b'{"format": 1, "packs": [], "snapshots": {"a": ["2026-11-20T00:00:00Z", [], 1, "t", []]}}',
        b'{"format": 1, "packs": [], "snapshots": {"a": ["2026-11-20T00:00:00Z", null, 1, "t", [0]]}}',
        b'{"format": 1, "packs": [], "snapshots": {"a": ["2026-11-20T00:00:00Z", null, 1, "t", [-1]]}}',
    ],
)
def test_another_document_is_no_summaries(document: bytes) -> None:
    """A later format, and whatever has the right digest and other contents."""
    for body in (zlib.compress(document), document):
        with pytest.raises(ValueError, match=r"."):
            decode(hashlib.sha256(body).digest() + body)


def test_summaries_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small object does not fill the memory."""
    history = History()
    history.add(manifest(ID), (10, "tag"))
    data = encode(history.summaries)
    monkeypatch.setattr(module, "_MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_ids_are_found_from_the_end() -> None:
    """As many before one id, or before the end, as a page has."""
    history = History()
    for snapshot_id in (NEWER, OLDER, ID):
        history.add(manifest(snapshot_id))
    assert [history.id_before(None, count) for count in (1, 3, 4)] == [NEWER, OLDER, None]
    assert [history.id_before(NEWER, count) for count in (1, 2, 3)] == [ID, OLDER, None]


def test_large_manifests_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each only what is needed is kept; whole snapshots up to a limit, the ones shown last."""
    monkeypatch.setattr(module, "_SHOWN_BYTES", 100_000)
    collections = tuple(
        SnapshotCollection(tenant="t", database="d", name=f"collection {number}", id=str(number), records=number)
        for number in range(400)
    )
    large = manifest(ID, (b"database",))
    large = large.model_copy(update={"snapshot": large.snapshot.model_copy(update={"collections": collections})})
    size_bytes, history = len(large.to_bytes()), History()
    assert size_bytes > 30_000
    tracemalloc.start()
    try:
        for number in range(100):
            snapshot = large.snapshot.model_copy(update={"id": f"20261120T{number:06}Z-000000"})
            history.add(large.model_copy(update={"snapshot": snapshot}))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 100 * size_bytes / 10
    assert history.shown("20261120T000099Z-000000") == snapshot
    assert history.shown("20261120T000000Z-000000") is None
