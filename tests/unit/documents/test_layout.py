"""Names become keys inside their own folder, or nothing at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.documents.layout import FOLDER_KINDS, avatar_folder, check_avatar, collection_name, image_folder, resolve
from gateway.errors import InvalidRequest, NotFound

PLAIN = next(kind for kind in FOLDER_KINDS if kind.path == "vectorstore_data")
ADAPTERS = next(kind for kind in FOLDER_KINDS if kind.path == "adapters")

BAD_NAMES = [
    *("", "/", ".", "..", "../a", "a/../b", "a/..", "./a", "a//b", "/a", "a/", "a\\b", "..\\a"),
    *("a\0b", "a\nb", "a\x7f", "a\x85b", "a\u2028b", "\ud800", "a\ufffdb", "a\uffff", "x" * 901, "ü" * 451),
]
GOOD_NAMES = [
    "a",
    "a/b/c.md",
    "...",
    "..a",
    "a..",
    " a ",
    "ü",
    "u\u0308",
    "日本語",
    "😀",
    "%2e%2e",
    "a?b#c",
    "x" * 900,
    "*",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name: str) -> None:
    """What could lead out of the folder, or cannot be said to every store, is no name."""
    with pytest.raises(InvalidRequest):
        avatar_folder("u", "a", PLAIN).key(name)
    assert avatar_folder("u", "a", PLAIN).name(f"users/u/avatars/a/vectorstore_data/{name}") is None


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names_are_kept_as_they_are(name: str) -> None:
    """No form of Unicode is turned into another, nothing is cut."""
    folder = avatar_folder("u", "a", PLAIN)
    assert folder.key(name) == f"users/u/avatars/a/vectorstore_data/{name}"
    assert folder.name(folder.key(name)) == name


@given(st.text())
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    """Whatever the name, its key is below the folder's prefix, and is this name's alone."""
    for folder in (*(avatar_folder("u", "a", kind) for kind in FOLDER_KINDS), image_folder("u")):
        try:
            key = folder.key(name)
        except InvalidRequest:
            continue
        assert key == folder.prefix + name
        assert all(part not in ("", ".", "..") for part in key.split("/"))
        assert folder.name(key) == name


@pytest.mark.parametrize("name", ["training_data", "training_data/x", "metadata/metadata.json", "metadata"])
def test_reserved_folders_are_no_names(name: str) -> None:
    """A folder of the layout inside another cannot be reached as a document of the outer one."""
    with pytest.raises(InvalidRequest):
        avatar_folder("u", "a", ADAPTERS).key(name)
    assert resolve(f"adapters/{name}")[0] is not ADAPTERS


@pytest.mark.parametrize("folder", FOLDER_KINDS)
def test_every_path_of_the_layout_resolves(folder: object) -> None:
    """To its folder, and the rest is the name; anything else is not there."""
    path = folder.path  # type: ignore[attr-defined]
    assert resolve(path) == (folder, None)
    assert resolve(f"{path}/") == (folder, None)
    assert resolve(f"{path}/x/y") == (folder, "x/y")


@pytest.mark.parametrize(
    "path", ["", "vectorstore", "vectorstore_dat", "vectorstore_data2/x", "media", "media/x", "../x"]
)
def test_other_paths_are_not_there(path: str) -> None:
    """The snapshots, above all."""
    with pytest.raises(NotFound):
        resolve(path)


@pytest.mark.parametrize("avatar", ["", ".", "..", "a/b", "a b", "-a", "a-", "a.", "ä", "a" * 129, "a\n"])
def test_bad_avatars_are_refused(avatar: str) -> None:
    """An avatar's id is as plain as a collection's name must be."""
    with pytest.raises(InvalidRequest):
        check_avatar(avatar)
    assert collection_name("a") == "avatar-a"
