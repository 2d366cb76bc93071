"""Files are divided into blocks and put together again, byte for byte. Invalid patches are refused."""

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CorruptSnapshot
from gateway.snapshot.blocks import (
    Fingerprinter,
    Layout,
    Numbers,
    base_writes,
    changed_blocks,
    digest_of_pages,
    encode_patches,
    page_digests,
    parse_patch,
)

layouts = st.lists(st.integers(1, 8).map(lambda words: 4 * words), min_size=1, max_size=4).map(
    lambda parts: Layout(tuple(parts))
)
sizes = st.integers(0, 300)


def blocks_of(data: bytes, layout: Layout) -> list[bytes]:
    """All blocks, found one after the other."""
    found, position, number = [], 0, 0
    while position < len(data):
        part = layout.parts[number % len(layout.parts)]
        found.append(data[position : position + part])
        position, number = position + part, number + 1
    return found


def apply(patch: bytes, layout: Layout, data: bytearray) -> Numbers:
    """Write a patch into `data`, as a restore does into a file, and never past its end."""
    numbers, writes = parse_patch(patch, layout, len(data))
    for offset, some in writes:
        assert 0 <= offset < offset + len(some) <= len(data)
        data[offset : offset + len(some)] = some
    return numbers


@given(layouts, sizes)
def test_blocks_are_adjacent_and_cover_the_file(layout: Layout, size_bytes: int) -> None:
    """Each begins where the one before ends, together they are the file, and past its end there is none."""
    count = layout.count(size_bytes)
    position = 0
    for number in range(count):
        offset, length = layout.span(number, size_bytes)
        assert offset == position
        assert length > 0
        position += length
    assert position == size_bytes
    assert layout.span(count, size_bytes)[1] == 0
    assert count == len(blocks_of(bytes(size_bytes), layout))


@given(layouts, sizes, st.lists(st.integers(0, 200)))
def test_spans_equals_span_of_each_block(layout: Layout, size_bytes: int, numbers: list[int]) -> None:
    """For all blocks at once as one by one."""
    offsets, lengths = layout.spans(np.array(numbers, np.int64), size_bytes)
    assert list(zip(offsets.tolist(), lengths.tolist(), strict=True)) == [
        layout.span(number, size_bytes) for number in numbers
    ]


def test_numbers_and_offsets_of_large_files_do_not_overflow() -> None:
    """A block past 2³² bytes, and past number 2³²."""
    layout = Layout((4,))
    offsets, lengths = layout.spans(np.array([1 << 33], np.int64), 1 << 40)
    assert (offsets.tolist(), lengths.tolist()) == ([4 << 33], [4])


# ---------------------------------------------------------------------- fingerprints


@given(layouts, st.binary(min_size=1, max_size=200), st.data())
def test_exactly_the_changed_blocks_are_found(layout: Layout, before: bytes, data: st.DataObject) -> None:
    """Whatever bytes change. New blocks at the end of the file count as changed."""
    now = bytearray(before)
    for position in data.draw(st.lists(st.integers(0, len(before) - 1), max_size=5)):
        now[position] ^= data.draw(st.integers(1, 255))
    now = now[: data.draw(st.integers(0, len(now)))] if data.draw(st.booleans()) else now
    now += data.draw(st.binary(max_size=50))
    fingerprinter = Fingerprinter(data.draw(st.integers(0, (1 << 64) - 1)))
    was, is_now = blocks_of(before, layout), blocks_of(bytes(now), layout)
    expected = [number for number, block in enumerate(is_now) if number >= len(was) or was[number] != block]
    changed = changed_blocks(fingerprinter.fingerprint(before, layout), fingerprinter.fingerprint(bytes(now), layout))
    assert changed.tolist() == expected


@given(layouts, st.binary(max_size=300), st.integers(1, 5))
def test_fingerprints_do_not_depend_on_how_a_file_is_read(layout: Layout, data: bytes, periods: int) -> None:
    """In pieces of whole periods, or at once."""
    fingerprinter, at_once = Fingerprinter(1), periods * layout.period_bytes
    pieces = [
        fingerprinter.fingerprint(data[start : start + at_once], layout) for start in range(0, len(data), at_once)
    ]
    whole = fingerprinter.fingerprint(data, layout)
    assert np.array_equal(np.concatenate([np.empty((0, 2), np.uint64), *pieces]), whole)
    assert len(whole) == layout.count(len(data))


def test_short_block_differs_from_one_padded_with_zeros() -> None:
    """A file that was truncated within zeros, or grew by some, has changed."""
    layout, fingerprinter = Layout((64,)), Fingerprinter(5)
    found = {fingerprinter.fingerprint(bytes(size), layout)[-1].tobytes() for size in range(1, 65)}
    assert len(found) == 64
    assert not np.array_equal(
        fingerprinter.fingerprint(b"\1" + bytes(62), layout), fingerprinter.fingerprint(b"\1" + bytes(63), layout)
    )


def test_fingerprint_depends_on_bytes_and_seed_only() -> None:
    """Equal bytes have equal fingerprints anywhere. With another seed they differ, so they cannot be forged."""
    layout = Layout((8, 8))
    twice = Fingerprinter(7).fingerprint(b"12345678abcdefgh" * 2, layout)
    assert np.array_equal(twice[:2], twice[2:])
    assert not np.array_equal(twice, Fingerprinter(8).fingerprint(b"12345678abcdefgh" * 2, layout))


def test_swapped_words_are_found() -> None:
    """A plain sum would miss them."""
    layout, fingerprinter = Layout((8,)), Fingerprinter(7)
    assert not np.array_equal(
        fingerprinter.fingerprint(b"aaaabbbb", layout), fingerprinter.fingerprint(b"bbbbaaaa", layout)
    )


@given(st.binary(max_size=500), st.sampled_from((16, 64)))
def test_digest_by_pages_changes_with_any_page(data: bytes, page_bytes: int) -> None:
    """It is the SHA-256 of the digests of the pages."""
    digests = page_digests(data, page_bytes)
    pages = [data[start : start + page_bytes] for start in range(0, len(data), page_bytes)]
    assert digests.tobytes() == b"".join(hashlib.sha256(page).digest()[:16] for page in pages)
    assert digest_of_pages(digests) == hashlib.sha256(digests.tobytes()).hexdigest()
    if data:
        other = bytes((data[0] ^ 1,)) + data[1:]
        assert digest_of_pages(page_digests(other, page_bytes)) != digest_of_pages(digests)


# ---------------------------------------------------------------------- patches


@given(layouts, st.binary(max_size=300), st.sets(st.integers(0, 100)), st.integers(1, 80))
def test_patches_restore_their_blocks(layout: Layout, now: bytes, chosen: set[int], limit_bytes: int) -> None:
    """All chosen blocks are as they were, the short last one too. All others are untouched."""
    blocks = blocks_of(now, layout)
    numbers = sorted(number for number in chosen if number < len(blocks))
    made = list(encode_patches(((number, blocks[number]) for number in numbers), limit_bytes))
    data = bytearray(b"\xaa" * len(now))
    told = [number for patch in made for number in apply(patch, layout, data).tolist()]
    assert told == numbers
    expected = [block if number in chosen else b"\xaa" * len(block) for number, block in enumerate(blocks)]
    assert bytes(data) == b"".join(expected)
    for patch in made[:-1]:
        assert len(patch) >= limit_bytes


@given(layouts, st.binary(max_size=200), st.integers(0, 250))
def test_patch_of_a_longer_file_is_truncated_to_the_present_size(layout: Layout, then: bytes, size_bytes: int) -> None:
    """What lies past the end of the file is left out. A file that grew since keeps what follows."""
    made = list(encode_patches(enumerate(blocks_of(then, layout)), 1 << 20))
    data = bytearray(b"\xaa" * size_bytes)
    for patch in made:
        apply(patch, layout, data)
    assert bytes(data) == then[:size_bytes] + b"\xaa" * (size_bytes - len(then))


def test_adjacent_blocks_are_one_write() -> None:
    """A run of blocks is written at once."""
    layout = Layout((4, 8))
    blocks = [(0, b"aaaa"), (1, b"bbbbbbbb"), (2, b"cccc"), (5, b"dddddddd")]
    (patch,) = encode_patches(blocks, 1 << 20)
    _, writes = parse_patch(patch, layout, 1000)
    assert [(offset, bytes(some)) for offset, some in writes] == [
        (0, b"aaaabbbbbbbbcccc"),
        (28, b"dddddddd"),
    ]


def test_no_blocks_make_no_patch() -> None:
    """Not an empty one either."""
    assert list(encode_patches([], 10)) == []


def hostile() -> Iterator[bytes]:
    def made(numbers: list[int], data: bytes) -> bytes:
        return len(numbers).to_bytes(4, "little") + b"".join(each.to_bytes(4, "little") for each in numbers) + data

    yield b""
    yield b"\1\0"
    yield made([0], b"")
    yield made([0], b"too long for one block")
    yield made([0, 1], b"too short"[:8])
    yield b"\xff\xff\xff\xff" + bytes(100)
    yield made([1, 2, 3], bytes(8 * 2))
    yield made([(1 << 32) - 1] * 1000, bytes(8 * 1000 + 1))


@pytest.mark.parametrize("patch", list(hostile()))
def test_inconsistent_patch_is_refused(patch: bytes) -> None:
    """Before anything of it is written."""
    with pytest.raises(CorruptSnapshot, match="patch"):
        parse_patch(patch, Layout((8,)), 1 << 20)


@given(patch=st.binary(max_size=200), layout=layouts, size_bytes=sizes, cut=st.integers(0, 3), data=st.data())
def test_any_bytes_as_a_patch_never_write_outside_the_file(
    patch: bytes, layout: Layout, size_bytes: int, cut: int, data: st.DataObject
) -> None:
    """They are refused, or write within the file. Also where only the block numbers are forged."""
    if data.draw(st.booleans()):
        steps = data.draw(st.lists(st.integers(0, (1 << 32) - 1), max_size=8))
        numbers = np.cumsum(np.array(steps, np.int64))
        _, lengths = layout.spans(numbers, 1 << 62)
        body = bytes(max(0, int(lengths.sum()) - cut))
        patch = len(steps).to_bytes(4, "little") + np.array(steps, "<u4").tobytes() + body
    try:
        apply(patch, layout, bytearray(size_bytes))
    except CorruptSnapshot:
        return


def test_block_numbers_that_overflow_are_refused() -> None:
    """A few steps of 2³² small blocks among large ones lie past 2⁶³ bytes. No offset may wrap round to a valid one."""
    layout, count = Layout((4, *[64 << 20] * 7)), 40
    steps = np.full(count, (1 << 32) - 8, "<u4")
    _, lengths = layout.spans(np.cumsum(steps.astype(np.int64)), 1 << 62)
    patch = count.to_bytes(4, "little") + steps.tobytes() + bytes(int(lengths[:-1].sum()) + 4)
    with pytest.raises(CorruptSnapshot, match="patch"):
        apply(patch, layout, bytearray(1 << 16))


def test_random_patches_of_a_large_layout_round_trip() -> None:
    """With blocks as those of an index: links, and vector with label."""
    layout, chance = Layout((132, 1544)), random.Random(0)
    now = chance.randbytes(layout.period_bytes * 500 + 700)
    count = layout.count(len(now))
    numbers = sorted([*chance.sample(range(count), 300), count - 1])
    data = bytearray(len(now))
    blocks = [(number, now[slice(*_bounds(layout, number, len(now)))]) for number in dict.fromkeys(numbers)]
    for patch in encode_patches(blocks, 20_000):
        apply(patch, layout, data)
    for number, block in blocks:
        assert bytes(data[slice(*_bounds(layout, number, len(now)))]) == block


def _bounds(layout: Layout, number: int, size_bytes: int) -> tuple[int, int]:
    offset, length = layout.span(number, size_bytes)
    return offset, offset + length


@given(
    layouts,
    st.binary(max_size=600),
    st.integers(0, 600),
    st.lists(st.booleans(), max_size=120),
    st.integers(1, 200),
)
def test_base_fills_the_blocks_that_no_patch_wrote(
    layout: Layout, base: bytes, size_bytes: int, chosen: list[bool], piece_bytes: int
) -> None:
    """In any pieces, it leaves written blocks alone and writes every other byte up to the end."""
    count = layout.count(size_bytes)
    patched = np.array((chosen + [False] * count)[:count], bool)
    written = bytearray(b"?" * size_bytes)
    for offset in range(0, len(base), piece_bytes):
        for position, some in base_writes(base[offset : offset + piece_bytes], layout, size_bytes, offset, patched):
            assert position + len(some) <= size_bytes
            assert written[position : position + len(some)] == b"?" * len(some), "twice"
            written[position : position + len(some)] = some
    expected = bytearray(base[:size_bytes].ljust(size_bytes, b"?"))
    for number in np.flatnonzero(patched):
        start, length = layout.span(int(number), size_bytes)
        expected[start : start + length] = b"?" * length
    assert written == expected


@given(layouts, st.binary(max_size=300), st.data())
def test_patches_may_be_applied_in_any_order(layout: Layout, before: bytes, data: st.DataObject) -> None:
    """If an older patch skips the blocks of newer ones, the result is that of oldest first."""
    count = layout.count(len(before))
    expected, made = bytearray(before), list[bytes]()
    for number in range(data.draw(st.integers(0, 4))):
        chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True).map(sorted)) if count else []
        blocks = [(each, bytes([number]) * layout.span(each, len(before))[1]) for each in chosen]
        made += [*encode_patches(blocks, 1 << 20)]
        for each, block in blocks:
            start, length = layout.span(each, len(before))
            expected[start : start + length] = block
    written, origins = bytearray(before), np.zeros(count, np.uint8)
    for number in data.draw(st.permutations(range(len(made)))):
        numbers, writes = parse_patch(made[number], layout, len(before), origins > number + 1)
        origins[numbers] = number + 1
        for position, some in writes:
            written[position : position + len(some)] = some
    assert written == expected
