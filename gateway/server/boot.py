"""The `chroma` program: make the data directory right, then become Chroma.

supervisord orders starts but does not wait for one to finish, so the order lies here, in one process:

1. be the only one here; finish an exchange that a crash cut short
2. nothing here yet? take the lease, so that a gateway before us publishes its last snapshot and no other
   after it; then restore what `GATEWAY_RESTORE` says
3. put the database in WAL mode
4. exec `chroma run`

What it finds decides what it does: data is left alone; an empty store means an empty start; a store
that cannot be reached is asked again for `GATEWAY_RESTORE_RETRY_S` and then ends it with status 3, for
an unreachable store is not an empty one; a demanded snapshot that is not there, 4; a corrupt one, 5.
"""

import asyncio
import time
from typing import NoReturn

import structlog
import tenacity

from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.process import require_free_port, run_chroma
from gateway.config import Settings
from gateway.errors import NotFound, NothingToRestore, StorageDenied, StorageUnavailable
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.lease import Lease, read_lease_state, this_process
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.storage import PrefixedStorage, Storage, open_storage

log = structlog.get_logger()

_NOTE_EVERY_S = 0.2


def boot(settings: Settings) -> NoReturn:
    """Does not return. Raises ConfigError, StorageError, SnapshotError or DiskFull, and has changed nothing then."""
    directory = DataDirectory(settings.data_dir)
    directory.make()
    directory.claim_as_chroma()
    require_free_port(settings.chroma_port)
    directory.note_boot(phase="preparing")
    directory.recover()
    if not directory.may_run_trial():
        log.error("Chroma died of the restored snapshot, rolling back", snapshot=directory.on_trial)
        directory.roll_back()
    if not directory.is_empty():
        log.info("the data directory holds data and is left alone", path=str(settings.data_dir))
    elif settings.restore == "none":
        log.info("nothing is restored, as GATEWAY_RESTORE says")
        DataDirState(settings.data_dir).begin_anew()
    else:
        asyncio.run(_restore(settings, directory))
    mode = database.prepare(settings.data_dir)
    if mode != "wal":
        log.warning("this file system cannot do WAL: a snapshot holds writes while the database is copied", mode=mode)
    directory.note_boot(phase="starting")
    run_chroma(settings.data_dir, settings.chroma_port, allow_reset=settings.allow_reset)


async def _restore(settings: Settings, directory: DataDirectory) -> None:
    store = open_storage(settings.store, addressing=settings.s3_addressing)
    own = PrefixedStorage(store, settings.repository_prefix)
    repository = Repository(own)
    try:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            stop=tenacity.stop_after_delay(settings.restore_retry_s),
            before_sleep=lambda state: _note_waiting(directory, state),
            reraise=True,
        ):
            with attempt:
                await _take_lease(own, settings, directory)
                await _restore_once(settings.restore, repository, directory)
    finally:
        await repository.close()


async def _take_lease(store: Storage, settings: Settings, directory: DataDirectory) -> None:
    """Make our house the holder of the lease, whichever of its two programs it is, before anything is restored.

    Where that is not allowed the restore goes on without, as it must with credentials that only read.
    """
    home = DataDirState(settings.data_dir)
    lease_state = await read_lease_state(store)
    if lease_state and lease_state.home != home.name() and lease_state.state != "released":
        directory.note_boot(phase="succeeding", holder=lease_state.where)
    # Plain writes here would undo what conditional ones promise, so there are none: where the store refuses
    # conditions, the `gateway` program, which has tried that out, takes the lease for us.
    lease = Lease(store, home.name(), this_process(), conditional=True, takeover_timeout_s=settings.takeover_timeout_s)
    try:
        await lease.take(any_of_ours=True)
    except StorageDenied as error:
        log.warning("the lease cannot be taken by this program", cause=str(error))
        await lease.wait_for_ours(settings.takeover_timeout_s)
    home.see(lease.known)


def _note_waiting(directory: DataDirectory, state: tenacity.RetryCallState) -> None:
    cause = str(state.outcome.exception()) if state.outcome else ""
    directory.note_boot(phase="waiting", cause=cause)
    log.warning("the store cannot be reached, trying again", cause=cause)


async def _restore_once(wanted: str, repository: Repository, directory: DataDirectory) -> None:
    await repository.check_format()
    if wanted == "latest":
        ids = await repository.ids()
        if not ids:
            log.info("the store holds no snapshot, starting empty", store=repository.url)
            return
        wanted = ids[0]
    else:
        wanted = await _published(repository, wanted)
    noted_at = 0.0

    def note(done: int, total: int) -> None:
        nonlocal noted_at
        if done in (0, total) or time.monotonic() - noted_at > _NOTE_EVERY_S:
            noted_at = time.monotonic()
            directory.note_boot(phase="restoring", snapshot=wanted, bytes_done=done, bytes_total=total)

    log.info("restoring", snapshot=wanted, store=repository.url)
    try:
        await restore_at_boot(repository, directory, wanted, note)
    except NotFound as error:
        raise _nothing(repository, wanted) from error


async def _published(repository: Repository, wanted: str) -> str:
    try:
        return await repository.resolve(wanted)
    except NotFound as error:
        raise _nothing(repository, wanted) from error


def _nothing(repository: Repository, wanted: str) -> NothingToRestore:
    return NothingToRestore(
        f"GATEWAY_RESTORE demands snapshot {wanted}, which is not in {repository.url}",
        "set it to a snapshot that is, to 'latest' or to 'none'",
    )
