"""Snapshots of a store where no gateway runs: what the option `--store` is for."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TypeVar, cast

from gateway.admin import Snapshot, Verification
from gateway.chroma.directory import PRIVATE, DataDirectory
from gateway.cli.store_settings import store_settings
from gateway.errors import ConfigError, NotFound, NothingToRestore
from gateway.files import scratch_directory
from gateway.jobs import Progress, counted
from gateway.journal.replay import find_point, replay_of
from gateway.journal.sequence import Sequence
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.lease import read_lease_state
from gateway.snapshot.operations import Wanted
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.snapshot.sound import fetch_sound
from gateway.snapshot.tar import tar
from gateway.snapshot.verify import Level, verify
from gateway.storage import PrefixedStorage, Storage, open_storage

_T = TypeVar("_T")
_LIST = "see the snapshots of this store with `chroma-gateway list --store …`"


class OfflineRepository:
    """The snapshots of one user in one store. Results have the JSON form of the admin API.

    Every method raises StorageError if the store cannot be used, and NothingToRestore if the snapshot is not there.
    """

    def __init__(self, store: str, user_id: str | None) -> None:
        """Raises ConfigError if `store` or `user_id` is not valid."""
        self._settings = store_settings(store, user_id)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, newest first."""

        async def work(repository: Repository) -> list[Snapshot]:
            return [cast("Snapshot", each.model_dump(mode="json")) for each in await repository.snapshots()]

        return self._run(work)

    def snapshot(self, name: str) -> Snapshot:
        """One snapshot; `name` is an id or `latest`."""

        async def work(repository: Repository) -> Snapshot:
            found = await repository.snapshot(await _existing(repository, name))
            return cast("Snapshot", found.model_dump(mode="json"))

        return self._run(work)

    def verify(self, name: str, level: Level, scratch: Path, progress: Progress) -> Verification:
        """What is wrong with a snapshot. The level `boot` restores it into a directory below `scratch` for a while."""

        async def work(repository: Repository) -> Verification:
            snapshot_id = await _existing(repository, name)
            found = await verify(repository, scratch, snapshot_id, level, progress)
            return cast("Verification", found.model_dump(mode="json"))

        return self._run(work)

    def restore(self, name: str, data_dir: Path, progress: Progress) -> Snapshot:
        """Restore a snapshot into `data_dir`, an empty directory or none yet. Raises ConfigError if it holds data.

        A gateway that starts there continues from it. After an error nothing is left there that was not there before.
        """
        storage = self._storage()

        async def find(repository: Repository) -> Wanted:
            return Wanted(await _existing(repository, name))

        return self._restore(find, storage, data_dir, progress)

    def restore_at(self, at: datetime | None, data_dir: Path, progress: Progress) -> Snapshot:
        """As `restore`, of the state at the moment `at`, or of the newest one."""
        storage = self._storage()
        sequence = Sequence(storage)

        async def find(repository: Repository) -> Wanted:
            point = await find_point(sequence, repository, at)
            if point is None:
                raise NothingToRestore(f"there is nothing in {repository.url}", _LIST)
            return Wanted(point.manifest.snapshot.id, replay_of(sequence, point))

        return self._restore(find, storage, data_dir, progress)

    def _restore(
        self, find: Callable[[Repository], Awaitable[Wanted]], storage: Storage, data_dir: Path, progress: Progress
    ) -> Snapshot:
        directory = DataDirectory(data_dir.expanduser().absolute())
        _require_empty(directory)

        async def work(repository: Repository) -> Snapshot:
            wanted = await find(repository)
            lease_state = await read_lease_state(storage)
            with _claimed(directory):
                memory = DataDirState(directory.path)
                memory.see_restored(wanted.snapshot_id, lease_state)
                if (newest := await Sequence(storage).newest()) is not None:
                    memory.see_journal(newest.head.number)
                note = counted(progress, "fetching")
                restored = await restore_at_boot(repository, directory, wanted.snapshot_id, note, wanted.replay)
            return cast("Snapshot", restored.model_dump(mode="json"))

        return self._run(work, storage)

    def export(self, name: str, file: IO[bytes], scratch: Path, progress: Progress) -> None:
        """Write a snapshot to `file` as a plain tar. It is restored into a directory below `scratch` for a while."""

        async def work(repository: Repository) -> None:
            manifest = await repository.manifest(await _existing(repository, name))
            async with scratch_directory(scratch, "export") as directory:
                await fetch_sound(
                    repository, directory, manifest, counted(progress, "fetching"), scratch, keep_log=False
                )
                for piece in tar(directory):
                    await asyncio.to_thread(file.write, piece)

        self._run(work)

    def _storage(self) -> Storage:
        """The user's part of the store. Nothing is touched yet."""
        store = open_storage(self._settings.store, self._settings.store_options)
        return PrefixedStorage(store, self._settings.repository_prefix)

    def _run(self, work: Callable[[Repository], Awaitable[_T]], storage: Storage | None = None) -> _T:
        async def run() -> _T:
            repository = Repository(storage or self._storage())
            try:
                await repository.check_format()
                return await work(repository)
            finally:
                await repository.close()

        return asyncio.run(run())


@contextmanager
def _claimed(directory: DataDirectory) -> Iterator[None]:
    """Make `directory`, and keep every gateway and every Chroma from using it in the block.

    What this makes is removed again if the block raises. Raises ConfigError if the directory holds data or is in use.
    """
    path, private = directory.path, directory.path / PRIVATE
    made = [each for each in (private, path) if not each.exists()]
    try:
        directory.make()
        directory.claim_as_gateway()
        directory.claim_as_chroma()
        _require_empty(directory)
        yield
    except BaseException:
        if private in made:
            shutil.rmtree(private, ignore_errors=True)
        if path in made:
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        directory.release()


def _require_empty(directory: DataDirectory) -> None:
    if not directory.is_empty():
        raise ConfigError(f"{directory.path} holds data already", "name an empty directory")


async def _existing(repository: Repository, name: str) -> str:
    """The id of the snapshot that `name` means. Raises NothingToRestore if there is none."""
    try:
        snapshot_id = await repository.resolve(name)
    except NotFound as error:
        raise NothingToRestore(f"{error.message} in {repository.url}", _LIST) from error
    if not await repository.exists(snapshot_id):
        raise NothingToRestore(f"there is no snapshot {snapshot_id} in {repository.url}", _LIST)
    return snapshot_id
