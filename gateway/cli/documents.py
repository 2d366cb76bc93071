"""`chroma-gateway documents …` and `chroma-gateway ingest …`: what the admin API does, from a shell."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from gateway.auth.admin_token import TOKEN_FILE
from gateway.config import Settings, load_settings
from gateway.documents.layout import resolve
from gateway.errors import ConfigError, GatewayError, InvalidRequest, ObjectMissing, Unavailable

_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 300.0
_LOOK_AGAIN_S = 0.2
_PAGE = 1000

Url = Annotated[str | None, typer.Option("--url", help="Of the gateway; by default the one at HOST and PORT.")]
Path_ = Annotated[str, typer.Argument(help="AVATAR/FOLDER or AVATAR/FOLDER/NAME, e.g. ada/vectorstore_data/a.md")]

documents = typer.Typer(help="The training documents of avatars.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Give `app` these commands."""
    app.add_typer(documents, name="documents")
    app.command()(ingest)


class _Gateway:
    """The admin API of a gateway that runs."""

    def __init__(self, url: str | None) -> None:
        settings = load_settings()
        self.url = _url_of(url, settings)
        if (headers := _authorization(settings)) is None:
            raise ConfigError(
                f"there is no admin token: no GATEWAY_ADMIN_TOKEN, and no {TOKEN_FILE} here",
                "set GATEWAY_ADMIN_TOKEN to the gateway's",
            )
        self.user = f"/admin/users/{settings.user_id}"
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=_TIMEOUT_S,
            trust_env=url is not None,  # what stays on this machine goes through no proxy
        )

    def place(self, path: str) -> str:
        """The URL's path of AVATAR/FOLDER/NAME."""
        return f"{self.user}/avatars/{quote(path)}"

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer. Raises GatewayError with what the gateway said."""
        try:
            answer = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._away(error) from error
        return _checked(answer)

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", path) as answer:
                if answer.is_error:
                    answer.read()
                    _checked(answer)
                yield answer
        except httpx.TransportError as error:
            raise self._away(error) from error

    def documents(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All documents of a folder."""
        after = ""
        while True:
            page = self.ask("GET", self.place(path), params={"limit": _PAGE, "after": after} | params)
            yield from page["documents"]
            if page["next"] is None:
                return
            after = page["next"]

    def upload(self, path: str, file: Path, params: dict[str, Any], advance: Any) -> Any:
        def pieces() -> Iterator[bytes]:
            with file.open("rb") as opened:
                while piece := opened.read(_PIECE_BYTES):
                    advance(len(piece))
                    yield piece

        headers = {"Content-Length": str(file.stat().st_size)}
        return self.ask("PUT", self.place(path), content=pieces(), headers=headers, params=params)

    def follow(self, job: dict[str, Any], bars: Any) -> dict[str, Any]:
        """Wait for a job with a bar for each of its phases; return its result. Raises GatewayError if it failed."""
        bar, phase = None, None
        while True:
            job = self.ask("GET", f"/admin/jobs/{job['id']}")
            if job["phase"] is not None:
                if job["phase"] != phase:
                    if bar is not None:
                        bars.update(bar, total=1, completed=1)
                    phase, bar = job["phase"], bars.add_task(job["phase"], total=job["total"])
                bars.update(bar, total=job["total"], completed=job["done"])
            if job["state"] != "running":
                if bar is not None:
                    bars.update(bar, total=1, completed=1)
                break
            time.sleep(_LOOK_AGAIN_S)
        if job["state"] != "succeeded":
            raise GatewayError(job["error"]["message"], job["error"].get("hint"))
        result: dict[str, Any] = job["result"] or {}
        return result

    def _away(self, error: httpx.TransportError) -> Unavailable:
        return Unavailable(f"the gateway at {self.url} does not answer: {error}", "start it, or say --url")


def _url_of(url: str | None, settings: Settings) -> str:
    return (url or f"http://{settings.host}:{settings.port}").rstrip("/")


def _authorization(settings: Settings) -> dict[str, str] | None:
    """The header that says who we are; None if nobody told us."""
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    if token is None:
        try:
            token = TOKEN_FILE.read_text().strip()
        except OSError:
            return None
    return {"Authorization": f"Bearer {token}"}


def _document(path: str) -> str:
    """Return `path` if it names a document. Raises InvalidRequest for a folder, NotFound where there is none."""
    if resolve(path.partition("/")[2])[1] is None:
        raise InvalidRequest(f"{path} is a folder", "name a document in it")
    return path


def _folder(path: str) -> str:
    """Return `path` if it names a folder. Raises InvalidRequest for a document, NotFound where there is none."""
    folder, name = resolve(path.partition("/")[2])
    if name is not None:
        raise InvalidRequest(f"{path} is a document", f"list {path.partition('/')[0]}/{folder.path}")
    return path


def _checked(answer: httpx.Response) -> Any:
    if answer.is_error:
        try:
            body = answer.json()
        except ValueError:
            body = {}
        raise GatewayError(body.get("message", f"{answer.status_code} {answer.text[:200]}"), body.get("hint"))
    return answer.json() if answer.content else None


@contextlib.contextmanager
def _bars() -> Iterator[Any]:
    """Progress bars on stderr, so that stdout is the answer."""
    from rich.console import Console  # noqa: PLC0415  # each command loads only what it needs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress


def _say(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


@documents.command()
def avatars(url: Url = None) -> None:
    """List avatars."""
    gateway = _Gateway(url)
    _say(gateway.ask("GET", f"{gateway.user}/avatars"))


@documents.command("list")
def list_documents(path: Path_, url: Url = None, digests: bool = False) -> None:
    """List a folder."""
    _say(list(_Gateway(url).documents(_folder(path), digests=digests)))


@documents.command()
def put(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What to upload.")],
    path: Path_,
    url: Url = None,
    used: Annotated[bool | None, typer.Option(help="Its flag.")] = None,
) -> None:
    """Upload a document."""
    gateway = _Gateway(url)
    with _bars() as bars:
        bar = bars.add_task("upload", total=file.stat().st_size)
        params = {} if used is None else {"used": used}
        stored = gateway.upload(path, file, params, lambda count: bars.advance(bar, count))
    _say(stored)


@documents.command()
def get(path: Path_, file: Annotated[Path, typer.Argument(help="Where to put it.")], url: Url = None) -> None:
    """Download a document."""
    gateway = _Gateway(url)
    part = file.with_name(f"{file.name}.part")
    try:
        with gateway.stream(gateway.place(_document(path))) as answer, _bars() as bars:
            bar = bars.add_task("download", total=int(answer.headers.get("Content-Length", 0)) or None)
            with part.open("wb") as out:
                for piece in answer.iter_bytes(_PIECE_BYTES):
                    out.write(piece)
                    bars.advance(bar, len(piece))
        part.replace(file)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


@documents.command()
def delete(path: Path_, url: Url = None) -> None:
    """Delete a document."""
    gateway = _Gateway(url)
    gateway.ask("DELETE", gateway.place(path))


@documents.command()
def copy(path: Path_, to: Path_, url: Url = None, replace: bool = False) -> None:
    """Copy a document within the store."""
    gateway = _Gateway(url)
    avatar, _, target = to.partition("/")
    _say(gateway.ask("POST", gateway.place(path), json={"avatar_id": avatar, "path": target, "replace": replace}))


@documents.command()
def flag(path: Path_, used: Annotated[bool, typer.Option("--used/--unused")], url: Url = None) -> None:
    """Say whether a document, or every one of a folder, is used."""
    gateway = _Gateway(url)
    _say(gateway.ask("PATCH", gateway.place(path), json={"used": used}))


@documents.command()
def link(path: Path_, seconds: int = 3600, url: Url = None) -> None:
    """A link that anybody can download with."""
    gateway = _Gateway(url)
    _say(gateway.ask("GET", gateway.place(_document(path)), params={"link_s": seconds}))


@documents.command()
def delete_avatar(avatar: str, url: Url = None, yes: Annotated[bool, typer.Option("--yes")] = False) -> None:
    """Delete an avatar with everything under it."""
    if not yes and typer.prompt("Everything of it goes. Its id once more") != avatar:
        raise InvalidRequest("that is not its id; nothing was deleted")
    gateway = _Gateway(url)
    job = gateway.ask("DELETE", gateway.place(avatar), json={"avatar_id": avatar})
    with _bars() as bars:
        result = gateway.follow(job, bars)
    _say(result)


@documents.command()
def train(
    avatar: str,
    url: Url = None,
    request: Annotated[str, typer.Option(help="The request's body, as JSON.")] = "{}",
    dry_run: bool = False,
) -> None:
    """Train an avatar's collection."""
    gateway = _Gateway(url)
    try:
        asked = json.loads(request) | {"dry_run": dry_run}
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"--request is not a JSON object: {error}") from None
    job = gateway.ask("POST", f"{gateway.place(avatar)}/vectorstore/train", json=asked)
    with _bars() as bars:
        result = gateway.follow(job, bars)
    _say(result)


def ingest(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Files with text, at any depth.")],
    avatar: Annotated[str | None, typer.Option(help="Upload, flag and train for this avatar.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="Train this collection, without the store; or what to call the avatar's.")
    ] = None,
    url: Url = None,
    request: Annotated[str, typer.Option(help="The training's request body, as JSON.")] = "{}",
) -> None:
    """Make a folder of files a collection. What did not change since costs nothing."""
    from gateway.documents.text import suffixes  # noqa: PLC0415
    from gateway.documents.train import Training  # noqa: PLC0415

    if avatar is None and collection is None:
        raise InvalidRequest("say --avatar or --collection")
    try:
        asked = Training.model_validate(json.loads(request) | ({"collection": collection} if collection else {}))
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"--request: {error}") from None
    found = sorted(file for file in directory.rglob("*") if file.is_file() and not _hidden(file, directory))
    files = {file.relative_to(directory).as_posix(): file for file in found if file.suffix.lower() in suffixes()}
    skipped = [file.relative_to(directory).as_posix() for file in found if file.suffix.lower() not in suffixes()]
    with _bars() as bars:
        digests = _digests(files, bars)
        if avatar is None:
            result = asyncio.run(
                _train_folder(files, digests, str(collection), directory.resolve().name, url, asked, bars)
            )
        else:
            result = _train_avatar(_Gateway(url), avatar, files, digests, asked.model_dump(), bars)
    _say(result | {"skipped": skipped})


def _hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(directory).parts)


def _digests(files: dict[str, Path], bars: Any) -> dict[str, str]:
    bar = bars.add_task("look", total=len(files))
    digests = {}
    for name, file in files.items():
        with file.open("rb") as opened:
            digests[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        bars.advance(bar)
    return digests


def _train_avatar(
    gateway: _Gateway, avatar: str, files: dict[str, Path], digests: dict[str, str], asked: dict[str, Any], bars: Any
) -> dict[str, Any]:
    folder = f"{avatar}/vectorstore_data"
    there = {each["name"]: each for each in gateway.documents(folder, digests=True)}
    new = [name for name in files if name not in there or there[name]["digest"] != f"sha256:{digests[name]}"]
    bar = bars.add_task("upload", total=sum(files[name].stat().st_size for name in new))
    for name in new:
        params = {"used": True, "sha256": digests[name]}
        gateway.upload(f"{folder}/{name}", files[name], params, lambda count: bars.advance(bar, count))
    unused = {name: True for name in files if name in there and not there[name]["used"] and name not in new}
    bar = bars.add_task("flag", total=1)
    if unused:
        gateway.ask("PATCH", gateway.place(folder), json={"flags": unused})
    bars.advance(bar)
    job = gateway.ask("POST", f"{gateway.place(avatar)}/vectorstore/train", json=asked)
    return gateway.follow(job, bars) | {"uploaded": new}


async def _train_folder(
    files: dict[str, Path],
    digests: dict[str, str],
    collection: str,
    owner: str,
    url: str | None,
    asked: Any,
    bars: Any,
) -> dict[str, Any]:
    from gateway.documents.embedding import Embedding  # noqa: PLC0415
    from gateway.documents.train import Trainer  # noqa: PLC0415
    from gateway.jobs import Progress  # noqa: PLC0415

    settings = load_settings()
    trainer = Trainer(
        _url_of(url, settings),
        _let_through,
        embedding=Embedding.of(settings.embedding),
        module=settings.embedding_module or None,
        headers=_authorization(settings),
    )
    shown: dict[str, Any] = {}

    def show() -> None:
        if progress.name is not None:
            if progress.name not in shown:
                shown[progress.name] = bars.add_task(progress.name, total=progress.total)
            bars.update(shown[progress.name], total=progress.total, completed=progress.done)

    progress = Progress(show)
    source = _Folder(files, digests)
    trained = await trainer.train(source, collection, f"folder:{owner}", asked, progress)
    for bar in shown.values():
        bars.update(bar, total=1, completed=1)
    return trained.model_dump(mode="json")


@contextlib.asynccontextmanager
async def _let_through(_what: str, _collection_id: str | None) -> AsyncIterator[None]:
    """The gateway's own gate holds our requests back, as it does every client's."""
    yield


class _Folder:
    """Files of a directory, as a source of training."""

    def __init__(self, files: dict[str, Path], digests: dict[str, str]) -> None:
        self._files, self._digests = files, digests

    async def documents(self) -> list[Any]:
        return await asyncio.to_thread(lambda: [self._document(name) for name in self._files])

    def _document(self, name: str) -> Any:
        from gateway.documents.store import Document, content_type  # noqa: PLC0415

        status, digest = self._files[name].stat(), self._digests[name]
        modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
        return Document(name, status.st_size, content_type(name), modified_at, digest, f"sha256:{digest}", True)

    async def read(self, document: Any) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._files[document.name].open, "rb")
        except FileNotFoundError:
            raise ObjectMissing(f"{self._files[document.name]} is not there any more") from None
        with file:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece

    async def again(self, document: Any) -> None:
        """What was deleted since we looked is not to be used."""

    async def digest(self, document: Any) -> str:
        return self._digests[document.name]
