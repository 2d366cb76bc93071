"""Plans are made without I/O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.model import File, Manifest, Pack, Piece
from gateway.snapshot.plan import MAX_PATCHES, FileAction, FilePlan, plan_file, plan_restore
from tests.unit.snapshot.manifests import manifest, sha

PACK_BYTES = 100

# ---------------------------------------------------------------------- how to store a file


def applied(patches: list[int], plan: FilePlan, changed_bytes: int) -> list[int]:
    """The patches after the plan, if every changed block differs from all earlier ones."""
    if plan.action is FileAction.REBASE:
        return []
    if plan.action is FileAction.KEEP:
        return patches
    kept = patches[: len(patches) - plan.replaced]
    return [*kept, changed_bytes + sum(patches[len(kept) :])]


@given(
    size_bytes=st.integers(1, 1 << 30),
    patches=st.lists(st.integers(1, 1 << 28), max_size=MAX_PATCHES),
    changed_bytes=st.integers(0, 1 << 30),
    resized=st.booleans(),
)
def test_plan_respects_the_bounds_of_patches(
    size_bytes: int, patches: list[int], changed_bytes: int, resized: bool
) -> None:
    """Together they have at most half of the file's bytes. A patch replaces only patches that exist."""
    plan = plan_file(size_bytes, patches, changed_bytes, resized=resized)
    assert 0 <= plan.replaced <= len(patches)
    after = applied(patches, plan, changed_bytes)
    assert len(after) <= MAX_PATCHES
    if plan.action is FileAction.PATCH:
        assert changed_bytes
        assert sum(after) <= size_bytes / 2
    else:
        assert plan.replaced == 0
    if changed_bytes or resized:
        assert sum(after) <= size_bytes / 2
    if changed_bytes:
        assert plan.action is not FileAction.KEEP
    elif not resized:
        assert plan == (FileAction.KEEP, 0)


@given(sizes=st.lists(st.integers(1, 1 << 16), min_size=50, max_size=300))
def test_repeated_changes_are_stored_a_few_times_each(sizes: list[int]) -> None:
    """Over many snapshots of a large file, each changed byte goes to the store a small number of times."""
    patches: list[int] = []
    stored = 0
    for changed_bytes in sizes:
        plan = plan_file(1 << 40, patches, changed_bytes, resized=False)
        assert plan.action is FileAction.PATCH
        before, patches = patches, applied(patches, plan, changed_bytes)
        stored += patches[-1]
        assert len(patches) <= MAX_PATCHES
        assert sum(patches) == sum(before) + changed_bytes
    assert stored <= 8 * sum(sizes)


def test_unchanged_file_is_kept_and_much_changed_file_is_stored_anew() -> None:
    """A file that was only truncated keeps its pieces, unless little of it is left."""
    assert plan_file(1000, [10], 0, resized=False) == (FileAction.KEEP, 0)
    assert plan_file(1000, [], 501, resized=False) == (FileAction.REBASE, 0)
    assert plan_file(1000, [], 500, resized=False) == (FileAction.PATCH, 0)
    assert plan_file(1000, [400], 101, resized=False) == (FileAction.REBASE, 0)
    assert plan_file(1000, [400], 0, resized=True) == (FileAction.KEEP, 0)
    assert plan_file(100, [400], 0, resized=True) == (FileAction.REBASE, 0)
    assert plan_file(0, [], 0, resized=True) == (FileAction.KEEP, 0)


@pytest.mark.parametrize("size_bytes", [0, 1000])
def test_a_file_that_cannot_be_compared_is_stored_anew(size_bytes: int) -> None:
    """The store does not have it, or has it in another layout. An empty file is stored too."""
    assert plan_file(size_bytes, None, size_bytes, resized=False) == (FileAction.REBASE, 0)


def test_small_patches_are_merged_and_large_ones_are_kept() -> None:
    """Once there are as many as allowed, the newest ones go into the new one."""
    patches = [10_000] * (MAX_PATCHES // 2) + [1] * (MAX_PATCHES // 2)
    assert plan_file(1 << 30, patches, 1, resized=False) == (FileAction.PATCH, MAX_PATCHES // 2)
    assert plan_file(1 << 30, patches[1:], 1, resized=False) == (FileAction.PATCH, 0)


# ---------------------------------------------------------------------- what to fetch


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of any files whose pieces lie anywhere in up to four packs."""
    packs = tuple(Pack(sha256=sha(bytes([number])), size_bytes=PACK_BYTES) for number in range(draw(st.integers(1, 4))))

    def pieces() -> tuple[Piece, ...]:
        found = []
        for _ in range(draw(st.integers(0, 4))):
            offset = draw(st.integers(0, PACK_BYTES - 1))
            size_bytes = draw(st.integers(1, PACK_BYTES - offset))
            found.append(Piece(size_bytes, draw(st.integers(0, len(packs) - 1)), offset, size_bytes, "raw"))
        return tuple(found)

    files = []
    for number in range(draw(st.integers(0, 4))):
        base = pieces()
        patches = tuple(pieces() for _ in range(draw(st.integers(0, 4))))
        size_bytes = sum(piece.size_bytes for piece in base)
        files.append(
            File(path=f"f{number}", size_bytes=size_bytes, sha256=sha(b""), layout=(4096,), base=base, patches=patches)
        )
    return manifest().model_copy(update={"packs": packs, "files": tuple(files)})


@given(manifests())
def test_restore_plan_has_every_piece_once(made: Manifest) -> None:
    """Patches with their numbers, bases with their offsets, and no pack twice in either list."""
    patches, bases = plan_restore(made)
    for fetches in (patches, bases):
        assert len({fetch.pack.sha256 for fetch in fetches}) == len(fetches)
        assert all(made.packs[part.piece.pack] == fetch.pack for fetch in fetches for part in fetch.parts)
    for file in made.files:
        based = sorted((part.offset, part.piece) for each in bases for part in each.parts if part.file == file)
        assert [piece for _, piece in based] == list(file.base)
        position = 0
        for offset, piece in based:
            assert offset == position
            position += piece.size_bytes
        assert position == file.size_bytes
        patched = [(part.number, part.piece) for each in patches for part in each.parts if part.file == file]
        assert sorted(patched) == sorted((n, piece) for n, patch in enumerate(file.patches, 1) for piece in patch)
    assert not any(part.number for fetch in bases for part in fetch.parts)


def test_pack_without_pieces_is_not_fetched() -> None:
    """A pack in the manifest that no piece refers to costs nothing."""
    made = manifest()
    patches, bases = plan_restore(made)
    assert not patches
    assert plan_restore(made.model_copy(update={"files": made.files[:1]})) == ([], bases[:1])
