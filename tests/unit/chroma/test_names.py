"""The name of a UUID, and never a name from before a change."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma.names import CollectionName, CollectionNames
from gateway.errors import Unavailable

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Directory:
    """A data directory whose one collection can be renamed."""

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, 1
        self._do(
            "create table databases(id, name, tenant_id)",
            "create table collections(id, name, database_id)",
            "insert into databases values ('d', 'web', 'acme')",
            f"insert into collections values ('{ID}', 'before', 'd')",
        )

    def rename(self, name: str) -> None:
        self._do(f"update collections set name = '{name}'")

    def _do(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path / "chroma.sqlite3", isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


async def test_a_name_is_remembered_until_something_changes(directory: Directory) -> None:
    """After `changed`, or a start of Chroma, a rename shows at once; otherwise when the entry expires."""
    names = CollectionNames(directory.path, lambda: directory.run)
    assert names.known(ID) is None
    assert await names.find(ID) == CollectionName("acme", "web", "before")
    directory.rename("unheard")
    assert names.known(ID) == CollectionName("acme", "web", "before")
    names.changed()
    assert names.known(ID) is None
    assert await names.find(ID) == CollectionName("acme", "web", "unheard")
    directory.rename("restored")
    directory.run = 2
    assert names.known(ID) is None
    assert await names.find(ID) == CollectionName("acme", "web", "restored")


async def test_a_name_that_was_read_before_a_change_is_not_returned_after_it(directory: Directory) -> None:
    """If the rename is acknowledged between the read and the result, the result is the new name."""
    names = CollectionNames(directory.path, lambda: directory.run)
    read, reads = names._read, 0

    def read_then_rename(collection_id: str) -> CollectionName | None:
        nonlocal reads
        reads += 1
        found = read(collection_id)
        if reads == 1:
            directory.rename("after")
            names.changed()
        return found

    names._read = read_then_rename  # type: ignore[method-assign]
    assert await names.find(ID) == CollectionName("acme", "web", "after")
    assert reads == 2


async def test_an_unknown_collection_has_no_name(directory: Directory) -> None:
    """The result is not cached, because the collection may be created at any moment."""
    names = CollectionNames(directory.path, lambda: directory.run)
    assert await names.find("another") is None
    assert names.known("another") is None


async def test_an_unreadable_database_is_unavailable(tmp_path: Path) -> None:
    """The result is a transient error and never a name, and no database is created."""
    names = CollectionNames(tmp_path, lambda: 1)
    with pytest.raises(Unavailable):
        await names.find(ID)
    assert not list(tmp_path.iterdir())
