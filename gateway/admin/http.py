"""What the blocking and the asynchronous client have in common: how a request is sent, and what an answer means."""

import contextlib
import ipaddress
import json
import ssl
from collections.abc import Iterator
from typing import Any

import httpx

from gateway.admin.answers import Job
from gateway.admin.calls import Call
from gateway.admin.errors import NotAGateway, answered_error
from gateway.errors import ConfigError, GatewayError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8000"

_CONNECT_TIMEOUT_S = 5.0
# A request that starts no job may still wait for the store, or for writes that are under way.
_ANSWER_TIMEOUT_S = 300.0
# Between two events of a job, and before the first byte of an archive, any time may pass.
NO_ANSWER_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
_MAX_SHOWN_CHARACTERS = 200
# Chroma sends it with each error. The gateway's own errors are told before by their body.
_CHROMA_HEADER = "chroma-trace-id"
_STATES = ("running", "succeeded", "failed", "cancelled")


def client_options(url: str, token: str, use_proxies: bool | None) -> dict[str, Any]:
    """The options of an httpx client for the gateway at `url`. Raises ConfigError if `url` or `token` is not usable."""
    parsed = parse_url(url)
    if use_proxies is None:
        use_proxies = not is_loopback(parsed.host)
    # httpx would read every certificate authority for each client, which takes 20 to 60 ms.
    needs_no_tls = parsed.scheme == "http" and not use_proxies
    return {
        "base_url": url,
        "headers": authorization(token),
        "timeout": httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        "trust_env": use_proxies,
        "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if needs_no_tls else True,
    }


def parse_url(url: str) -> httpx.URL:
    """Raises ConfigError if `url` is not an HTTP URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url} is not a URL: {error}", f"use an address such as {DEFAULT_URL}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url} is not an HTTP URL", f"use an address such as {DEFAULT_URL}")
    return parsed


def authorization(token: str) -> dict[str, str]:
    """The header that carries `token`. Raises ConfigError if a header cannot carry it."""
    if not token.isascii() or not token.isprintable():
        raise ConfigError(
            "the admin token has characters that a header cannot carry", "use the token exactly as it was made"
        )
    return {"Authorization": f"Bearer {token}"}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def options_of(call: Call[Any]) -> dict[str, Any]:
    """The options of `httpx.Client.request` for a call, without its body."""
    params, headers = dict(call.params), dict(call.headers)
    if call.on_job is not None and not call.always_a_job:
        params["wait"] = "false"
    if call.body is not None:
        headers["Content-Length"] = str(call.body.size_bytes)
    options: dict[str, Any] = {"params": params, "headers": headers}
    return options if call.json is None else options | {"json": call.json}


def answer_of(url: str, answer: httpx.Response) -> Any:
    """The JSON of an answer that was read, None if it has no body. Raises AnsweredError or NotAGateway."""
    require_success(url, answer)
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError:
        raise not_a_gateway(url, "the answer is not JSON") from None


def require_success(url: str, answer: httpx.Response) -> None:
    """Raise what the gateway answered, if that is an error. Its body must have been read."""
    if answer.is_success:
        return
    try:
        body = answer.json()
        name, message, hint = str(body["error"]), str(body["message"]), body.get("hint")
    except (ValueError, KeyError, TypeError):
        if _CHROMA_HEADER in answer.headers:
            raise not_a_gateway(url, "Chroma itself answers there") from None
        text = f"{answer.status_code} {answer.text[:_MAX_SHOWN_CHARACTERS]}".strip()
        raise not_a_gateway(url, f"it answers {text}") from None
    error = answered_error(name, message, hint, path=answer.url.path, status=answer.status_code)
    retry_after = answer.headers.get("Retry-After", "")
    error.retry_after_s = int(retry_after) if retry_after.isdigit() else None
    raise error


def job_of(url: str, answer: Any) -> Job:
    """The job in an answer or in the line of an event. Raises NotAGateway."""
    try:
        job: Job = json.loads(answer) if isinstance(answer, str) else answer
        if not isinstance(job["id"], str) or job["state"] not in _STATES:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise not_a_gateway(url, "the answer is not a job") from None
    return job


def event_of(line: str) -> str | None:
    """The JSON in a line of server-sent events, None if it has none."""
    return line.removeprefix("data:") if line.startswith("data:") else None


def result_of(job: Job, path: str) -> Any:
    """The result of a job that has ended, None if it has none. Raises AnsweredError if it failed or was cancelled."""
    if (error := job.get("error")) is not None:
        raise answered_error(
            error["error"], error["message"], error.get("hint"), path=path, exit_code=job.get("exit_code")
        )
    return job.get("result")


def goes_on(job: Job) -> GatewayError:
    """The error that ends the waiting for a job that is left running."""
    return GatewayError(
        f"this command has ended, job {job['id']} goes on in the gateway",
        f"`chroma-gateway jobs show {job['id']}` shows how far it is",
    )


def length_of(answer: httpx.Response) -> int | None:
    """The number of bytes in the body of an answer, None if it does not say."""
    length = answer.headers.get("Content-Length")
    return int(length) if length else None


def not_a_gateway(url: str, cause: str) -> NotAGateway:
    return NotAGateway(f"{url} is not a Chroma Gateway: {cause}", "use the URL of a gateway")


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise Unavailable for an error of the connection to the gateway at `url`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unavailable(
            f"no gateway answers at {url}: {error}", "start it with `chroma-gateway serve`, or use another URL"
        ) from error
    except httpx.TimeoutException as error:
        raise Unavailable(f"the gateway at {url} did not answer in time") from error
    except httpx.HTTPError as error:
        raise Unavailable(f"the connection to the gateway at {url} broke: {error!r}") from error
