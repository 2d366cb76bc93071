"""The HTTP client of the admin API: the only one that commands use."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import httpx
from pydantic import ValidationError

from gateway.auth.admin_token import TOKEN_FILE
from gateway.chroma.process import NO_TLS
from gateway.config import Settings, load_settings
from gateway.errors import ConfigError, GatewayError, NothingToRestore, StorageError, Unavailable
from gateway.jobs import JobStatus, Progress

_CONNECT_TIMEOUT_S = 5.0
# A request that starts no job may still wait for the store, or for writes that are under way.
_ANSWER_TIMEOUT_S = 300.0
# Between two events of a job, and before the first byte of an archive, any time may pass.
_NO_ANSWER_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
_PIECE_BYTES = 1 << 20
_MAX_SHOWN_CHARACTERS = 200


class AnsweredError(GatewayError):
    """An error that the gateway answered. `name` is the name that it gave, `exit_code` what it means to a shell."""

    def __init__(self, name: str, message: str, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint)
        self._name = name
        self.exit_code = exit_code

    @property
    def name(self) -> str:
        return self._name


def base_url(settings: Settings, url: str | None = None) -> str:
    """The URL of the gateway: `url` if given, else where `settings` say that it listens. No slash at the end.

    Raises ConfigError if `url` is not an HTTP URL.
    """
    if url is None:
        return settings.local_url
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(
            f"--url {url} is not a URL: {error}", "use an address such as http://127.0.0.1:8000"
        ) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--url {url} is not an HTTP URL", "use an address such as http://127.0.0.1:8000")
    return url.rstrip("/")


def find_token(settings: Settings, token: str | None = None) -> str | None:
    """The admin token: `token` if given, else GATEWAY_ADMIN_TOKEN, else the token file's. None if there is none."""
    if token is not None:
        return token
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    try:
        return TOKEN_FILE.read_text().strip() or None
    except OSError:
        return None


def authorization(token: str) -> dict[str, str]:
    """The header that carries `token`. Raises ConfigError if a header cannot carry it."""
    if not token.isascii() or not token.isprintable():
        raise ConfigError(
            "the admin token has characters that a header cannot carry", "use the token exactly as it was made"
        )
    return {"Authorization": f"Bearer {token}"}


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces of at most 1 MiB, as the body of a request."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def counted_pieces(pieces: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """`pieces`, of which each advances `progress` by its bytes when it is sent."""
    for piece in pieces:
        progress.advance(len(piece))
        yield piece


def connect(url: str | None, token: str | None) -> "AdminClient":
    """The client of the gateway that the settings and the options `--url` and `--token` name.

    Raises ConfigError if a setting or an option is wrong, or if there is no token.
    """
    settings = load_settings()
    # Proxies of the environment are for other machines.
    return AdminClient(base_url(settings, url), find_token(settings, token), use_proxies=url is not None)


class AdminClient:
    """The admin API of a running gateway.

    Every method raises AnsweredError for an error that the gateway answered, Unavailable if it cannot be reached or
    the connection breaks, and GatewayError if the answer is not a gateway's.
    """

    def __init__(self, url: str, token: str | None, *, use_proxies: bool = False) -> None:
        if token is None:
            raise ConfigError(
                f"there is no admin token: GATEWAY_ADMIN_TOKEN is not set, and {TOKEN_FILE} cannot be read here",
                "use --token, or run the command in the directory where the gateway runs",
            )
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            headers=authorization(token),
            timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=use_proxies,
            verify=NO_TLS if url.startswith("http://") and not use_proxies else True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of the answer, None if it has no body. `options` are httpx's."""
        with self._translated():
            answer = self._client.request(method, path, **options)
        self._require_success(answer)
        return self._json(answer) if answer.content else None

    def run_job(
        self,
        method: str,
        path: str,
        *,
        on_status: Callable[[JobStatus], None] = lambda _: None,
        goes_on: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> dict[str, Any]:
        """Start a job, wait for its end and return its result. Ctrl-C cancels the job, unless `goes_on` returns true.

        `on_status` is called with each status that the gateway sends. Raises AnsweredError also if the job fails.
        Where the gateway cannot be reached any more the job may still go on.
        """
        options["params"] = {**options.get("params", {}), "wait": "false"}
        job = self._job_status(self.request(method, path, **options))
        try:
            while job.state == "running":
                for status in self._job_events(job.id):
                    job = status
                    on_status(job)
        except KeyboardInterrupt:
            if goes_on():
                raise GatewayError(
                    f"this command has ended, job {job.id} goes on in the gateway",
                    f"`chroma-gateway jobs show {job.id}` shows how far it is",
                ) from None
            self.request("DELETE", f"/admin/jobs/{job.id}")
            raise
        if job.error is not None:
            name = job.error["error"]
            exit_code = _exit_code(name, 0, path) or job.exit_code or GatewayError.exit_code
            raise AnsweredError(name, job.error["message"], job.error.get("hint"), exit_code)
        return job.result or {}

    def download(self, path: str, file: IO[bytes], progress: Progress) -> None:
        """Write the body of an answer to `file`, with `progress` in bytes."""
        with self._translated(), self._client.stream("GET", path, timeout=_NO_ANSWER_TIMEOUT) as answer:
            self._require_success(answer)
            length = answer.headers.get("Content-Length")
            progress.phase("download", int(length) if length else None)
            for piece in answer.iter_bytes(_PIECE_BYTES):
                file.write(piece)
                progress.advance(len(piece))

    def _job_events(self, job_id: str) -> Iterator[JobStatus]:
        path = f"/admin/jobs/{job_id}/events"
        with self._translated(), self._client.stream("GET", path, timeout=_NO_ANSWER_TIMEOUT) as answer:
            self._require_success(answer)
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield self._job_status(json.loads(line.removeprefix("data:")))

    def _job_status(self, answer: Any) -> JobStatus:
        try:
            return JobStatus.model_validate(answer)
        except ValidationError:
            raise self._not_a_gateway("the answer is not a job") from None

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise self._not_a_gateway("the answer is not JSON") from None

    def _not_a_gateway(self, cause: str) -> GatewayError:
        return GatewayError(f"{self.url} is not a Chroma Gateway: {cause}", "set --url to the gateway's address")

    def _require_success(self, answer: httpx.Response) -> None:
        """Raise what the gateway answered, if that is an error."""
        if answer.is_success:
            return
        answer.read()
        try:
            body = answer.json()
            name, message, hint = str(body["error"]), str(body["message"]), body.get("hint")
        except (ValueError, KeyError, TypeError):
            text = f"{answer.status_code} {answer.text[:_MAX_SHOWN_CHARACTERS]}".strip()
            raise self._not_a_gateway(f"it answers {text}") from None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            hint = "set --token or GATEWAY_ADMIN_TOKEN to the admin token of that gateway"
        exit_code = _exit_code(name, answer.status_code, answer.url.path) or GatewayError.exit_code
        raise AnsweredError(name, message, hint, exit_code)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise Unavailable for an error of the connection."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(
                f"no gateway answers at {self.url}: {error}",
                "start it with `chroma-gateway serve`, or name another one with --url",
            ) from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"the gateway at {self.url} did not answer in time") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"the connection to the gateway at {self.url} broke: {error!r}") from error


def _exit_code(name: str, status: int, path: str) -> int | None:
    """What an error means to a shell by its name, its status and the route's path; None if they do not tell."""
    if name.startswith("Storage"):
        return StorageError.exit_code
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return ConfigError.exit_code
    if name == NothingToRestore("").name and "/admin/snapshot/" in path:
        return NothingToRestore.exit_code
    return None
