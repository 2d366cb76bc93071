"""What `gateway.storage.protocol` promises, asked of every implementation."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from gateway.errors import InvalidRequest, ObjectMissing
from gateway.storage import Storage
from gateway.storage.protocol import MAX_KEY_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITERS = 16
KEYS = [
    "plain",
    "folder/plain",
    "deep/er/and/deeper/still.json",
    "with space/and  two",
    "ünïcödé/日本語/😀",
    "signs/+%&=?#;:@!$,'()*[]{}~^`|<>\"",
    "escaped%20already/%2F",
    ".hidden/..almost/...",
    "x" * 255,
]
BAD_KEYS = [
    "",
    "/absolute",
    "a//b",
    "a/",
    ".",
    "..",
    "a/../b",
    "./a",
    "a\\b",
    "a\0b",
    "a\ud800",
    "x/" * 512 + "x",
]


async def keys(store: Storage, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


# ------------------------------------------------------------------ put and get


@pytest.mark.parametrize("data", [b"x", b"", b"\0\r\n\xff" * 1000], ids=["one byte", "nothing", "binary"])
async def test_get_returns_what_was_put(store: Storage, data: bytes) -> None:
    """Byte for byte, also an empty object."""
    await store.put("a/b", data)
    assert await store.get("a/b") == data


async def test_a_large_object_is_whole(store: Storage) -> None:
    """An object of many network packets comes back byte for byte."""
    data = os.urandom(8 << 20)
    await store.put("large", data)
    assert await store.get("large") == data


async def test_put_replaces(store: Storage) -> None:
    """The last put wins, also where the new object is shorter."""
    await store.put("a", b"longer than the next")
    await store.put("a", b"next")
    assert await store.get("a") == b"next"
    assert await keys(store) == ["a"]


@pytest.mark.parametrize("key", KEYS)
async def test_every_valid_key_is_kept_as_it_is(store: Storage, key: str) -> None:
    """A key that `check_key` accepts can be put, got, listed and deleted under exactly that name."""
    await store.put(key, key.encode())
    assert await store.get(key) == key.encode()
    assert await keys(store) == [key]
    await store.delete(key)
    assert await keys(store) == []


async def test_readers_see_the_old_object_or_the_new_one(conditional_store: Storage) -> None:
    """While an object is replaced over and over, no reader gets a mixture."""
    store, versions = conditional_store, [bytes([n]) * 100_000 for n in range(4)]
    await store.put("a", versions[0])
    done = asyncio.Event()

    async def write() -> None:
        for n in range(20):
            await store.put("a", versions[n % 4])
        done.set()

    async def read() -> None:
        while not done.is_set():
            assert await store.get("a") in versions

    await asyncio.gather(write(), read(), read())


@pytest.mark.parametrize("key", ["missing", "folder", "folder/missing", "object/below"])
async def test_reading_a_missing_object_raises_object_missing(store: Storage, key: str) -> None:
    """So does reading a folder, or below an object. The error names the key."""
    await store.put("folder/object", b"x")
    await store.put("object", b"x")
    for read in (
        store.get(key),
        store.get_versioned(key),
        store.get_range(key, 0, 1),
        store.get_range(key, 0, 0),
    ):
        with pytest.raises(ObjectMissing, match=key):
            await read


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_invalid_keys_are_refused(store: Storage, key: str) -> None:
    """Every method refuses them before anything is done."""
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.put_if_match(key, b"", "v"),
        lambda: store.get(key),
        lambda: store.get_versioned(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            await call()
    assert await keys(store) == []


async def test_a_key_that_is_too_long_is_refused(store: Storage) -> None:
    """Never cut short: the prefix of the store counts, and S3's limit holds for every store."""
    with pytest.raises(InvalidRequest, match=str(MAX_KEY_BYTES)):
        await store.put("ü" * (MAX_KEY_BYTES // 2 + 1), b"")


# ------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 10, b"0123456789"),
        (0, 1, b"0"),
        (3, 4, b"3456"),
        (9, 1, b"9"),
        (8, 100, b"89"),
        (10, 1, b""),
        (1000, 1, b""),
        (0, 0, b""),
        (5, 0, b""),
    ],
)
async def test_a_range_ends_where_the_object_ends(store: Storage, start: int, length: int, expected: bytes) -> None:
    """It has the bytes asked for, fewer at the end of the object, and none past it."""
    await store.put("a", b"0123456789")
    assert await store.get_range("a", start, length) == expected


async def test_a_range_of_an_empty_object_is_empty(store: Storage) -> None:
    """It raises no error."""
    await store.put("a", b"")
    assert await store.get_range("a", 0, 10) == b""


# ------------------------------------------------------------------ list and delete


async def test_a_new_store_is_empty(store: Storage) -> None:
    """It lists nothing, for any prefix, and raises no error."""
    for prefix in ("", "a", "a/", "a/b/c"):
        assert await keys(store, prefix) == []


async def test_list_is_in_key_order(store: Storage) -> None:
    """Keys come in the order of their UTF-8 bytes, whether or not they share folders."""
    names = ["b/z", "a", "b-c", "b.d", "b0", "b/a/x", "B", "ü", "b/ü", "😀", "z z"]
    for name in names:
        await store.put(name, b"")
    assert await keys(store) == sorted(names, key=str.encode)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a/b", "a/b-c", "a/bc/d", "ab", "b"]),
        ("a", ["a/b", "a/b-c", "a/bc/d", "ab"]),
        ("a/", ["a/b", "a/b-c", "a/bc/d"]),
        ("a/b", ["a/b", "a/b-c", "a/bc/d"]),
        ("a/bc/", ["a/bc/d"]),
        ("a/bc/d", ["a/bc/d"]),
        ("a/bc/de", []),
        ("a/b/", []),
        ("c", []),
    ],
)
async def test_list_compares_the_prefix_as_a_string(store: Storage, prefix: str, expected: list[str]) -> None:
    """A prefix need not end where a part of a key ends."""
    for name in ("a/b", "a/bc/d", "a/b-c", "ab", "b"):
        await store.put(name, b"")
    assert await keys(store, prefix) == expected


async def test_list_has_size_and_time(store: Storage) -> None:
    """The size in bytes and, in UTC, the time of the last put."""
    await store.put("a", b"12345")
    (info,) = [info async for info in store.list("")]
    assert info.size_bytes == 5
    assert info.modified_at.tzinfo is UTC
    assert abs(info.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../b", "\0"])
async def test_invalid_prefixes_are_refused(store: Storage, prefix: str) -> None:
    """A prefix that no key can start with raises an error; it does not list nothing."""
    with pytest.raises(InvalidRequest):
        await keys(store, prefix)


async def test_delete_removes_only_its_key(store: Storage) -> None:
    """The objects beside it stay."""
    for name in ("a/b", "a/bc", "a/b-c/d"):
        await store.put(name, b"x")
    await store.delete("a/b")
    assert await keys(store) == ["a/b-c/d", "a/bc"]
    with pytest.raises(ObjectMissing):
        await store.get("a/b")


async def test_delete_may_be_repeated(store: Storage) -> None:
    """Deleting a key that does not exist, or no longer does, is no error."""
    await store.delete("never/was")
    await store.put("a/b", b"x")
    await store.delete("a/b")
    await store.delete("a/b")


async def test_many_objects_are_deleted_at_once(store: Storage) -> None:
    """Those that are named and no others, whatever characters their keys have. Missing ones are no error."""
    gone = ["a/b", "a/<ü> & b", "c"]
    for name in (*gone, "a/bc", "d"):
        await store.put(name, b"x")
    await store.delete_all([*gone, "never/was"])
    assert await keys(store) == ["a/bc", "d"]
    await store.delete_all([])
    assert await keys(store) == ["a/bc", "d"]


async def test_a_folder_is_no_object(conditional_store: Storage) -> None:
    """Deleting the name of a folder leaves the folder. Once it is empty, its name can be a key."""
    store = conditional_store
    await store.put("a/b", b"x")
    await store.delete("a")
    assert await keys(store) == ["a/b"]
    await store.delete("a/b")
    await store.put("a", b"now an object")
    assert await keys(store) == ["a"]


# ------------------------------------------------------------------ conditional writes


async def test_put_if_absent_never_replaces(conditional_store: Storage) -> None:
    """It returns True where it stored, and changes nothing where an object exists."""
    assert await conditional_store.put_if_absent("a/b", b"first") is True
    assert await conditional_store.put_if_absent("a/b", b"second") is False
    assert await conditional_store.get("a/b") == b"first"
    await conditional_store.delete("a/b")
    assert await conditional_store.put_if_absent("a/b", b"third") is True


async def test_of_many_put_if_absent_one_wins(atomic_store: Storage) -> None:
    """However many write at once, exactly one is told that it stored, and its bytes are there whole."""
    for turn in range(3):
        offers = [bytes([n]) * 50_000 for n in range(WRITERS)]
        key = f"race/{turn}"
        won = await asyncio.gather(*(atomic_store.put_if_absent(key, offer) for offer in offers))
        assert sum(won) == 1
        assert await atomic_store.get(key) == offers[won.index(True)]


async def test_put_if_match_follows_the_version(conditional_store: Storage) -> None:
    """The version of the last read may write; an older version may not."""
    store = conditional_store
    await store.put("a", b"0")
    first = await store.get_versioned("a")
    assert first.data == b"0"
    assert await store.put_if_match("a", b"1", first.version) is True
    assert await store.put_if_match("a", b"lost", first.version) is False
    second = await store.get_versioned("a")
    assert second.data == b"1"
    assert second.version != first.version
    await store.put("a", b"2")
    assert await store.put_if_match("a", b"lost", second.version) is False
    assert await store.get("a") == b"2"


async def test_put_if_match_never_creates(conditional_store: Storage) -> None:
    """Where the key is gone nothing is written, whatever version it had."""
    await conditional_store.put("a", b"0")
    version = (await conditional_store.get_versioned("a")).version
    await conditional_store.delete("a")
    assert await conditional_store.put_if_match("a", b"1", version) is False
    assert await conditional_store.put_if_match("never/was", b"1", version) is False
    assert await keys(conditional_store) == []


async def test_of_many_put_if_match_one_wins(atomic_store: Storage) -> None:
    """However many replace one version at once, exactly one is told that it did."""
    store = atomic_store
    await store.put("a", b"start")
    for turn in range(3):
        version = (await store.get_versioned("a")).version
        offers = [b"%d %d" % (turn, n) for n in range(WRITERS)]
        won = await asyncio.gather(*(store.put_if_match("a", offer, version) for offer in offers))
        assert sum(won) == 1
        assert await store.get("a") == offers[won.index(True)]


async def test_compare_and_swap_loses_no_increment(atomic_store: Storage) -> None:
    """With many that read, add one and write back if unchanged, the sum is right."""
    store = atomic_store
    await store.put("counter", b"0")

    async def increment() -> None:
        while True:
            counter = await store.get_versioned("counter")
            if await store.put_if_match("counter", b"%d" % (int(counter.data) + 1), counter.version):
                return

    await asyncio.gather(*(increment() for _ in range(6)))
    assert await store.get("counter") == b"6"


# ------------------------------------------------------------------ objects that come and go in pieces

PIECES = [b"", b"x", os.urandom(3 << 20), b"y" * 100, os.urandom(6 << 20), os.urandom(9 << 20), b"the end"]
WHOLE = b"".join(PIECES)


async def of(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def gathered(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("pieces", [PIECES, [], [b"small"], [b"z" * (8 << 20)], [b"z" * (16 << 20)]], ids=len)
async def test_download_yields_what_was_uploaded(store: Storage, pieces: list[bytes]) -> None:
    """Byte for byte, of one part, many or none. The upload returns what a listing then tells."""
    told = await store.upload("a/b", of(pieces))
    assert told is not None
    (listed,) = [info async for info in store.list("")]
    headed = await store.head("a/b")
    assert (told.key, told.size_bytes, told.tag) == ("a/b", len(b"".join(pieces)), listed.tag)
    assert (headed.key, headed.size_bytes, headed.tag) == (listed.key, listed.size_bytes, listed.tag)
    assert headed.tag
    assert await gathered(store.download("a/b", tag=told.tag)) == b"".join(pieces)
    assert await store.get("a/b") == b"".join(pieces)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (0, 1), (5, 100), (8 << 20, 1 << 20), (len(WHOLE) - 3, 100), (len(WHOLE), 1), (3, None)],
)
async def test_a_download_may_be_of_a_range(store: Storage, start: int, length: int | None) -> None:
    """It may begin and end anywhere, as `get_range` may."""
    told = await store.upload("a", of(PIECES))
    assert told is not None
    end = None if length is None else start + length
    assert await gathered(store.download("a", start, length, tag=told.tag)) == WHOLE[start:end]


@pytest.mark.parametrize("before", [[], PIECES[:1], PIECES], ids=["at once", "early", "late"])
async def test_an_upload_that_fails_stores_nothing(store: Storage, before: list[bytes]) -> None:
    """An error from the pieces is passed on, and the key keeps what it had: nothing, or the old object."""

    async def failing() -> AsyncIterator[bytes]:
        for piece in before:
            yield piece
        raise LookupError("the client is gone")

    with pytest.raises(LookupError):
        await store.upload("a", failing())
    assert await keys(store) == []
    await store.put("a", b"old")
    with pytest.raises(LookupError):
        await store.upload("a", failing())
    assert await store.get("a") == b"old"
    assert await keys(store) == ["a"]


@pytest.mark.parametrize("pieces", [[b"new"], PIECES], ids=["small", "large"])
async def test_an_upload_may_have_conditions(conditional_store: Storage, pieces: list[bytes]) -> None:
    """`if_absent` never replaces. `if_tag` never creates, and follows the tag. Where one fails, nothing is stored."""
    store = conditional_store
    assert await store.upload("a", of(pieces), if_tag="0123") is None
    assert await keys(store) == []
    first = await store.upload("a", of(pieces), if_absent=True)
    assert first is not None
    assert await store.upload("a", of([b"lost"]), if_absent=True) is None
    second = await store.upload("a", of([b"second"]), if_tag=first.tag)
    assert second is not None
    assert second.tag != first.tag
    assert await store.upload("a", of(pieces), if_tag=first.tag) is None
    assert await store.get("a") == b"second"


async def test_of_many_conditional_uploads_one_wins(conditional_store: Storage) -> None:
    """However many upload at once, exactly one is told that it stored."""
    offers = [bytes([n]) * 50_000 for n in range(WRITERS)]
    won = await asyncio.gather(*(conditional_store.upload("a", of([offer]), if_absent=True) for offer in offers))
    (winner,) = [n for n, told in enumerate(won) if told]
    assert await conditional_store.get("a") == offers[winner]


async def test_a_tag_changes_with_the_bytes(store: Storage) -> None:
    """The tag of an object that was replaced downloads nothing."""
    await store.put("a", b"one")
    first = (await store.head("a")).tag
    await store.put("a", b"two")
    second = (await store.head("a")).tag
    assert second != first
    with pytest.raises(ObjectMissing):
        await gathered(store.download("a", tag=first))
    assert await gathered(store.download("a", tag=second)) == b"two"


@pytest.mark.parametrize("key", ["missing", "folder", "object/below"])
async def test_head_download_and_copy_of_a_missing_object_raise_object_missing(store: Storage, key: str) -> None:
    """The same error for all three."""
    await store.put("folder/object", b"x")
    await store.put("object", b"x")
    for call in (store.head(key), gathered(store.download(key, tag="t")), store.copy(key, "target")):
        with pytest.raises(ObjectMissing, match=key):
            await call


@pytest.mark.parametrize("key", KEYS)
async def test_a_copy_has_the_same_bytes(store: Storage, key: str) -> None:
    """A copy is an object of its own under exactly the name given, and replaces what was there."""
    await store.put(key, b"original")
    await store.put("target", b"old")
    assert await store.copy(key, "target") is True
    assert await store.copy("target", f"copies/{key}") is True
    await store.delete(key)
    assert await store.get("target") == b"original"
    assert await keys(store, "copies/") == [f"copies/{key}"]


async def test_a_conditional_copy_never_replaces(conditional_store: Storage) -> None:
    """With `if_absent`, an existing target stays."""
    store = conditional_store
    await store.put("a", b"a")
    await store.put("b", b"b")
    assert await store.copy("a", "b", if_absent=True) is False
    assert await store.copy("a", "c", if_absent=True) is True
    assert (await store.get("b"), await store.get("c")) == (b"b", b"a")


async def test_a_list_can_begin_after_a_key(store: Storage) -> None:
    """The keys that follow it in order come, whether or not it exists itself."""
    names = ["a/b-c", "a/b/d", "a/ü", "b"]
    for name in names:
        await store.put(name, b"")
    for n, name in enumerate(names):
        assert [info.key async for info in store.list("", name)] == names[n + 1 :]
        assert [info.key async for info in store.list("", name + "!")] == names[n + 1 :]
    assert [info.key async for info in store.list("a/", "a/b-c")] == names[names.index("a/b-c") + 1 : -1]
    for after in ("a", "a/", "a/b", "a/b/", "a/b/c", "a/b0", "a0", "z"):  # folders, and what would lie in them
        assert [info.key async for info in store.list("", after)] == [name for name in names if name > after]


async def test_folders_are_the_next_parts_of_names(store: Storage) -> None:
    """Folders below a prefix come once each, in order; objects beside them do not."""
    for name in ("b/c/d", "b/c/e", "b/ü/x", "b/file", "a/x", "top"):
        await store.put(name, b"")
    assert [name async for name in store.folders("")] == ["a", "b"]
    assert [name async for name in store.folders("b/")] == ["c", "ü"]
    assert [name async for name in store.folders("nothing/")] == []


async def test_a_presigned_url_gives_the_bytes(store: Storage) -> None:
    """Without credentials, as an attachment. A file store has no such URLs."""
    await store.put("a/ü b", b"linked")
    url = await store.presign("a/ü b", 60, 'ü "b"')
    if "file" in store.url:
        assert url is None
        return
    assert url is not None
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, b"linked")


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_uploads_to_invalid_keys_are_refused(store: Storage, key: str) -> None:
    """Before a piece is asked for."""

    async def unasked() -> AsyncIterator[bytes]:
        pytest.fail("asked for")
        yield b""

    await store.put("a", b"")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.upload(key, unasked()),
        lambda: store.head(key),
        lambda: gathered(store.download(key, tag="t")),
        lambda: store.copy("a", key),
        lambda: store.copy(key, "b"),
        lambda: store.presign(key, 60, "name"),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            await call()
    assert await keys(store) == ["a"]
