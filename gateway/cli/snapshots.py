"""`chroma-gateway snapshot|restore|list|show|verify|delete|gc|export|import`.

Against a running gateway over HTTP, following the job by its events; some also straight on a store. What people
read of the progress goes to stderr and what scripts read to stdout.
"""

import asyncio
import contextlib
import json
import sys
import tarfile
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import httpx
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gateway.auth.admin_token import TOKEN_FILE
from gateway.chroma.directory import DataDirectory
from gateway.config import Settings, load_settings
from gateway.errors import (
    ConfigError,
    CorruptSnapshot,
    GatewayError,
    NotFound,
    NothingToRestore,
    Unavailable,
)
from gateway.files import scratch_directory
from gateway.jobs import JobStatus
from gateway.jobs import Progress as Told
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.model import Snapshot, Verification
from gateway.snapshot.progress import counted
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.snapshot.tar import tar, tar_size
from gateway.snapshot.verify import Level, verify
from gateway.storage import PrefixedStorage, open_storage

_T = TypeVar("_T")
_CONNECT_TIMEOUT_S = 5.0
# What is asked is answered at once; jobs tell of themselves by their events, some of which may be far apart.
_ANSWER_TIMEOUT_S = 120.0
_PIECE_BYTES = 1 << 20

Name = Annotated[str, typer.Argument(help="A snapshot's id, or 'latest'.")]
Url = Annotated[str | None, typer.Option(help="The gateway; default: where HOST and PORT say it listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, and no progress.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Work on this store itself, without a gateway: s3://… or file:///….")
]
UserId = Annotated[str | None, typer.Option(help="With --store: whose snapshots; default: GATEWAY_USER_ID.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for name, command in _COMMANDS.items():
        app.command(name)(command)


# ---------------------------------------------------------------------- commands


def _snapshot(
    label: Annotated[str | None, typer.Option(help="What to call it.")] = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Take a snapshot."""
    with _Gateway(url, as_json) as gateway:
        gateway.show_snapshot(gateway.follow("POST", "/admin/snapshot", json={"label": label}))


def _restore(
    snapshot: Name = "latest",
    url: Url = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    data_dir: Annotated[Path | None, typer.Option(help="With --store: an empty directory to restore into.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a snapshot; with --store, make an empty directory what it was."""
    if store is None:
        if data_dir is not None:
            raise ConfigError("--data-dir is for --store", "a running gateway restores into its own data directory")
        with _Gateway(url, as_json) as gateway:
            gateway.show_snapshot(gateway.follow("POST", f"/admin/snapshot/{snapshot}/restore"))
        return
    if data_dir is None:
        raise ConfigError("--store needs --data-dir", "name an empty directory")
    directory = DataDirectory(data_dir.expanduser().absolute())
    directory.make()
    directory.claim_as_gateway()
    directory.claim_as_chroma()
    try:
        if not directory.is_empty():
            raise ConfigError(f"{directory.path} holds data already", "name an empty directory")

        async def work(repository: Repository, told: Told) -> Snapshot:
            found = await _demanded(repository, snapshot)
            return await restore_at_boot(repository, directory, found, counted(told, "fetching"))

        _show_snapshot(_on_store(store, user_id, as_json, work).model_dump(mode="json"), as_json)
    finally:
        directory.release()


def _list(url: Url = None, store: StoreUrl = None, user_id: UserId = None, as_json: AsJson = False) -> None:
    """List snapshots, newest first."""
    if store is None:
        with _Gateway(url, as_json) as gateway:
            snapshots = gateway.ask("GET", "/admin/snapshot")["snapshots"]
    else:

        async def work(repository: Repository, _: Told) -> list[Snapshot]:
            return await repository.snapshots()

        snapshots = [each.model_dump(mode="json") for each in _on_store(store, user_id, as_json, work)]
    if as_json:
        _print_json({"snapshots": snapshots})
        return
    for each in snapshots:
        records = sum(collection["records"] for collection in each["collections"])
        typer.echo(
            f"{each['id']}  {_bytes(each['size_bytes']):>10}  {records:>10} records  {_trust(each):<24}"
            f"  {each['label'] or ''}".rstrip()
        )
    if not snapshots:
        typer.echo("there is no snapshot yet", err=True)


def _show(
    snapshot: Name = "latest", url: Url = None, store: StoreUrl = None, user_id: UserId = None, as_json: AsJson = False
) -> None:
    """Show one snapshot with its collections."""
    if store is None:
        with _Gateway(url, as_json) as gateway:
            found = gateway.ask("GET", f"/admin/snapshot/{snapshot}")
    else:

        async def work(repository: Repository, _: Told) -> Snapshot:
            return await repository.snapshot(await _demanded(repository, snapshot))

        found = _on_store(store, user_id, as_json, work).model_dump(mode="json")
    _show_snapshot(found, as_json)


def _verify(
    snapshot: Name = "latest",
    level: Annotated[str, typer.Option(help="'data': every byte is there; 'boot': a Chroma serves it.")] = "data",
    url: Url = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    scratch: Annotated[
        Path | None, typer.Option(help="With --store: where 'boot' restores to; default: below the current directory.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at all of a snapshot. Ends with 5 if something is wrong with it."""
    if level not in ("data", "boot"):
        raise ConfigError(f"--level {level} is none", "it is 'data' or 'boot'")
    wanted: Level = "data" if level == "data" else "boot"
    if store is None:
        with _Gateway(url, as_json) as gateway:
            found = gateway.follow("POST", f"/admin/snapshot/{snapshot}/verify", json={"level": wanted})
    else:

        async def work(repository: Repository, told: Told) -> Verification:
            name = await _demanded(repository, snapshot)
            return await verify(repository, _scratch(scratch), name, wanted, told)

        found = _on_store(store, user_id, as_json, work).model_dump(mode="json")
    if as_json:
        _print_json(found)
    elif found["ok"]:
        typer.echo(f"snapshot {snapshot} is good ({wanted}, {found['duration_s']:.1f} s)")
    for problem in found["problems"]:
        typer.echo(problem, err=True)
    if not found["ok"]:
        raise CorruptSnapshot(f"snapshot {snapshot} is not good", "restore another one, see chroma-gateway list")


def _delete(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's id.")], url: Url = None, as_json: AsJson = False
) -> None:
    """Delete a snapshot. What others share with it stays."""
    with _Gateway(url, as_json) as gateway:
        gateway.follow("DELETE", f"/admin/snapshot/{snapshot}")
    if as_json:
        _print_json({"deleted": snapshot})
    else:
        typer.echo(f"snapshot {snapshot} is deleted")


def _gc(url: Url = None, as_json: AsJson = False) -> None:
    """Apply the retention and collect garbage."""
    with _Gateway(url, as_json) as gateway:
        _print_json(gateway.follow("POST", "/admin/gc"))


def _export(
    path: Annotated[Path, typer.Argument(help="The tar to write; '-' is standard output.")],
    snapshot: Annotated[str, typer.Option(help="A snapshot's id, or 'latest'.")] = "latest",
    url: Url = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    scratch: Annotated[
        Path | None, typer.Option(help="With --store: where it is restored to; default: below the current directory.")
    ] = None,
) -> None:
    """Write a snapshot as a plain tar of a directory that Chroma opens without a gateway."""
    if store is None:
        with _Gateway(url, as_json=False) as gateway, _written(path) as file:
            gateway.download(f"/admin/snapshot/{snapshot}/archive", file)
        return

    async def work(repository: Repository, told: Told) -> None:
        manifest = await repository.manifest(await _demanded(repository, snapshot))
        async with scratch_directory(_scratch(scratch), "export") as directory:
            await fetch_verified(repository, directory, manifest, counted(told, "fetching"), keep_log=False)
            with _written(path) as file:
                for piece in tar(directory):
                    await asyncio.to_thread(file.write, piece)

    _on_store(store, user_id, False, work)


def _import(
    path: Annotated[Path, typer.Argument(help="A tar, or a directory, of chromadb 0.4 or newer.")],
    label: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a snapshot of a Chroma directory or a tar of one. No Chroma may be using it."""
    if not path.exists():
        raise ConfigError(f"there is nothing at {path}")
    if path.is_dir():
        body: Iterator[bytes] = tar(path)
        size_bytes = tar_size(path)
    elif tarfile.is_tarfile(path):
        body, size_bytes = _pieces(path), path.stat().st_size
    else:
        raise ConfigError(f"{path} is neither a directory nor a tar archive")
    with _Gateway(url, as_json) as gateway:
        params = {"label": label} if label else {}
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(size_bytes)}
        gateway.show_snapshot(
            gateway.follow("POST", "/admin/snapshot/upload", params=params, content=body, headers=headers)
        )


_COMMANDS: dict[str, Callable[..., None]] = {
    "snapshot": _snapshot,
    "restore": _restore,
    "list": _list,
    "show": _show,
    "verify": _verify,
    "delete": _delete,
    "gc": _gc,
    "export": _export,
    "import": _import,
}


# ---------------------------------------------------------------------- over HTTP


class _Gateway:
    """A running gateway. Errors it answers with are raised as ours, with the exit code that they mean."""

    def __init__(self, url: str | None, as_json: bool) -> None:
        settings = load_settings()
        self.url = url.rstrip("/") if url else f"http://{_reachable(settings.host)}:{settings.port}"
        self._as_json = as_json
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {_token(settings)}"},
            timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=url is not None,  # what stays on this machine goes through no proxy
        )

    def __enter__(self) -> "_Gateway":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        """The answer as JSON."""
        with self._translated():
            answer = self._client.request(method, path, **kwargs)
            _require_success(answer)
            return answer.json() if answer.content else None

    def follow(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """Ask for a job, show its progress, return its result. Ctrl-C cancels the job."""
        params = {**kwargs.pop("params", {}), "wait": "false"}
        answer = self.ask(method, path, params=params, **kwargs)
        if not isinstance(answer, dict) or not {"id", "state", "kind"} <= answer.keys():
            return answer or {}  # it was no job, and is done
        job = JobStatus.model_validate(answer)
        try:
            with _Bar(self._as_json) as bar:
                while job.state == "running":
                    for status in self._events(job.id):
                        job = status
                        bar.show(job)
        except KeyboardInterrupt:
            self.ask("DELETE", f"/admin/jobs/{job.id}")
            raise
        if job.error is not None:
            error = GatewayError(job.error["message"], job.error.get("hint"))
            missing = job.error["error"] == NotFound("").name
            error.exit_code = NothingToRestore.exit_code if missing else job.exit_code or 1
            raise error
        return job.result or {}

    def _events(self, job_id: str) -> Iterator[JobStatus]:
        with (
            self._translated(),
            self._client.stream(
                "GET", f"/admin/jobs/{job_id}/events", timeout=httpx.Timeout(None, connect=5)
            ) as answer,
        ):
            if answer.is_error:
                answer.read()
            _require_success(answer)
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield JobStatus.model_validate_json(line.removeprefix("data:"))

    def download(self, path: str, file: IO[bytes]) -> None:
        """Write the answer's body to `file`. Raises Unavailable if it breaks off."""
        # The first byte comes when all of it was restored.
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        with self._translated(), self._client.stream("GET", path, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
            _require_success(answer)
            for piece in answer.iter_bytes(_PIECE_BYTES):
                file.write(piece)

    def show_snapshot(self, snapshot: dict[str, Any]) -> None:
        _show_snapshot(snapshot, self._as_json)

    @contextlib.contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no gateway answers at {self.url}: {error}",
                "start it with scripts/run, or name it with --url; restore, list, show, verify and export also work"
                " on a store itself, with --store",
            ) from error
        except httpx.HTTPError as error:
            raise Unavailable(f"the gateway at {self.url} broke off: {error!r}") from error
        except ValueError as error:
            raise GatewayError(f"what answers at {self.url} is no gateway: {error}", "see --url") from error


def _require_success(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        body = answer.json()
        message, hint, name = body["message"], body.get("hint"), body["error"]
    except (ValueError, KeyError, TypeError):
        message, hint, name = f"{answer.status_code} {answer.text[:200]}", "is this a gateway? see --url", ""
    error = GatewayError(message, hint)
    # What its name does not tell, its status does.
    if name.startswith("Storage"):
        error.exit_code = 3
    elif answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        error.exit_code = ConfigError.exit_code
    elif answer.status_code == httpx.codes.NOT_FOUND and "/snapshot/" in answer.url.path:
        error.exit_code = NothingToRestore.exit_code
    raise error


def _reachable(host: str) -> str:
    """Where to reach a gateway that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # not to listen
    return f"[{host}]" if ":" in host else host


def _token(settings: Settings) -> str:
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    try:
        return TOKEN_FILE.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"there is no admin token: {TOKEN_FILE} cannot be read: {error.strerror}",
            "set GATEWAY_ADMIN_TOKEN, or run this where the gateway runs",
        ) from error


# ---------------------------------------------------------------------- on a store itself


def _on_store(
    url: str, user_id: str | None, as_json: bool, work: Callable[[Repository, Told], Coroutine[Any, Any, _T]]
) -> _T:
    settings = load_settings()
    try:
        changed = Settings.model_validate(
            {"store": url, "user_id": user_id or settings.user_id, "s3_addressing": settings.s3_addressing}
        )
    except ValueError as error:
        raise ConfigError(f"--store {url} or --user-id cannot be used: {error}") from error

    async def run() -> _T:
        store = open_storage(changed.store, addressing=changed.s3_addressing)
        repository = Repository(PrefixedStorage(store, changed.repository_prefix))
        try:
            await repository.check_format()
            with _Bar(as_json) as bar:
                return await work(repository, bar.told)
        finally:
            await repository.close()

    return asyncio.run(run())


async def _demanded(repository: Repository, name: str) -> str:
    try:
        found = await repository.resolve(name)
    except NotFound as error:
        raise NothingToRestore(
            f"{error.message} in {repository.url}", "chroma-gateway list shows what is there"
        ) from error
    if found not in await repository.ids():
        raise NothingToRestore(
            f"there is no snapshot {found} in {repository.url}", "chroma-gateway list shows what is there"
        )
    return found


def _scratch(given: Path | None) -> Path:
    # Not the system's own: that is often memory.
    return given or Path.cwd()


# ---------------------------------------------------------------------- what is shown


class _Bar:
    """How far a job is: on a terminal. `told` is for work that happens here."""

    def __init__(self, quiet: bool) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None)
        self.told = Told(self._changed)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, job: JobStatus) -> None:
        self._bar.update(self._task, description=job.phase or job.kind, completed=job.done, total=job.total)

    def _changed(self) -> None:
        told = self.told
        self._bar.update(self._task, description=told.name or "", completed=told.done, total=told.total)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def _show_snapshot(snapshot: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(snapshot)
        return
    typer.echo(f"snapshot {snapshot['id']}" + (f"  {snapshot['label']}" if snapshot["label"] else ""))
    typer.echo(f"  {_bytes(snapshot['size_bytes'])}, of chromadb {snapshot['chroma_version']}, {_trust(snapshot)}")
    for each in snapshot["collections"]:
        typer.echo(f"  {each['tenant']}/{each['database']}/{each['name']}: {each['records']} records")


def _trust(snapshot: dict[str, Any]) -> str:
    verified = snapshot["verified"]
    if snapshot["state"] == "damaged":
        return "DAMAGED"
    if verified is None:
        return "never verified"
    return f"{'verified' if verified['ok'] else 'FAILED'} ({verified['level']}) {verified['at'][:10]}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


# ---------------------------------------------------------------------- files


@contextlib.contextmanager
def _written(path: Path) -> Generator[IO[bytes], None, None]:
    """A file that is there whole or not at all; standard output for `-`."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.rename(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
