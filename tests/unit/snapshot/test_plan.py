"""Plans are made without doing anything."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.model import Block, File, Manifest, Pack
from gateway.snapshot.plan import moved, plan_restore, unreferenced
from tests.unit.snapshot.manifests import NEWER, OLDER, manifest, sha

PACK_BYTES = 100


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any files whose blocks lie anywhere in up to four packs."""
    packs = tuple(Pack(sha256=sha(bytes([number])), size_bytes=PACK_BYTES) for number in range(draw(st.integers(1, 4))))
    files = []
    for number in range(draw(st.integers(0, 4))):
        blocks = []
        for _ in range(draw(st.integers(0, 5))):
            offset = draw(st.integers(0, PACK_BYTES - 1))
            size_bytes = draw(st.integers(1, PACK_BYTES - offset))
            which = draw(st.integers(0, len(packs) - 1))
            digest = sha(f"{which}/{offset}/{size_bytes}".encode())
            blocks.append(
                Block(
                    sha256=digest,
                    size_bytes=size_bytes,
                    pack=which,
                    offset=offset,
                    stored_bytes=size_bytes,
                    codec="raw",
                )
            )
        size_bytes = sum(block.size_bytes for block in blocks)
        files.append(File(path=f"f{number}", size_bytes=size_bytes, sha256=sha(b""), blocks=tuple(blocks)))
    return manifest().model_copy(update={"packs": packs, "files": tuple(files)})


@given(manifests())
def test_a_plan_fetches_every_needed_pack_once_and_places_every_block(made: Manifest) -> None:
    """No pack twice, none for nothing, its blocks in its own order, and every byte of every file written once."""
    plan = plan_restore(made)
    fetched = [fetch.pack.sha256 for fetch in plan]
    assert len(set(fetched)) == len(fetched)
    assert set(fetched) == {made.packs[block.pack].sha256 for file in made.files for block in file.blocks}
    for fetch in plan:
        offsets = [placement.block.offset for placement in fetch.placements]
        assert offsets == sorted(offsets)
        assert all(made.packs[placement.block.pack] == fetch.pack for placement in fetch.placements)
    for file in made.files:
        placed = [placement for fetch in plan for placement in fetch.placements if placement.path == file.path]
        placed.sort(key=lambda placement: (placement.offset, placement.block.size_bytes))
        position = 0
        for placement in placed:
            assert placement.offset == position
            position += placement.block.size_bytes
        assert position == file.size_bytes
        assert len(placed) == len(file.blocks)


def test_a_pack_that_holds_nothing_is_not_fetched() -> None:
    """A listed pack that no block is in costs nothing."""
    made = manifest()
    assert plan_restore(made.model_copy(update={"files": made.files[:1]})) == plan_restore(made)[:1]


def test_moved_names_what_is_new_or_changed_and_not_what_is_gone() -> None:
    """Only what has to be read again, in order."""
    assert moved({"same": 1, "changed": 1, "gone": 1}, {"same": 1, "new": 0, "changed": 2}) == ["changed", "new"]
    assert moved({}, {}) == []


def test_unreferenced_are_the_packs_no_other_manifest_names() -> None:
    """A pack that one other snapshot shares stays."""
    mine = manifest(OLDER, (b"mine", b"shared"))
    other = manifest(NEWER, (b"shared", b"other"))
    assert unreferenced(mine.packs, [other]) == [mine.packs[0]]
    assert unreferenced(mine.packs, []) == list(mine.packs)
    assert unreferenced(mine.packs, [other, mine]) == []
