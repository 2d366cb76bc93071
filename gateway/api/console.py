"""`/console`: the pages of the console, its sessions and its live events. They are for the pages alone, and may change.

What the pages show and do otherwise goes through `/admin/` and `/api/`, with the cookie of the session as key.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.deps import FeedOf, KeyringOf, SettingsOf
from gateway.api.key_holder import KeyHolder
from gateway.auth.keys import Key
from gateway.auth.origins import is_same_origin
from gateway.auth.scope import Role
from gateway.auth.sessions import LIFETIME_S
from gateway.auth.tokens import SESSION_COOKIE, TLS_SESSION_COOKIE, credentials_in, is_session, token_in
from gateway.console.files import INDEX, File, static_files
from gateway.errors import Forbidden, GatewayError, NotFound

log = structlog.get_logger()

_SESSION = "/console/session"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REVALIDATED = {"Cache-Control": "no-cache"}  # after an upgrade, no page is made of old and new files
_PRIVATE = {"Cache-Control": "no-store"}
# Read while the application is built, in a thread.
_FILES = static_files()


class _SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: str = Field(min_length=1, max_length=1024)


class _Session(BaseModel):
    name: str | None = Field(None, description="of the key; null if nobody is signed in")
    role: str | None = Field(None, description="reader, writer or admin")
    left_s: float | None = Field(None, description="how long the session lasts, in seconds")
    user_id: str | None = Field(None, description="GATEWAY_USER_ID")


router = APIRouter(include_in_schema=False)


@router.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("/console", headers=_HEADERS)


# ------------------------------------------------------------------ sessions


def _session(request: Request) -> str | None:
    """The token of the session that a request belongs to; None without one."""
    token = token_in(credentials_in(request.method.encode(), request.headers.raw))
    return token if token is not None and is_session(token) else None


def _require_same_origin(request: Request) -> None:
    if not is_same_origin(request.method.encode(), request.headers.raw):
        raise Forbidden(
            "only the console itself signs in and out",
            "a proxy in front must pass on the header Host or Sec-Fetch-Site",
        )


def _require_may_see(key: Key) -> None:
    if not key.scope.everything:
        raise Forbidden(
            f"this key is a {key.role.name.lower()}'s for a part of the data",
            "the console wants a key that sees everything; a reader's will do",
        )


def _set_cookie(response: Response, request: Request, session: str) -> None:
    # Behind TLS a browser says so with the origin of the page; what terminates TLS may say it too.
    origin, proto = request.headers.get("origin", ""), request.headers.get("x-forwarded-proto", "")
    secure = origin.startswith("https://") or proto.partition(",")[0].strip() == "https"
    name = TLS_SESSION_COOKIE if secure else SESSION_COOKIE
    response.set_cookie(name, session, max_age=LIFETIME_S, path="/", secure=secure, httponly=True, samesite="strict")


def _remove_cookies(response: Response, request: Request) -> None:
    for name in (SESSION_COOKIE, TLS_SESSION_COOKIE):
        if name in request.cookies:
            secure = name == TLS_SESSION_COOKIE
            response.set_cookie(name, "", max_age=0, path="/", secure=secure, httponly=True, samesite="strict")


def _described(key: Key, left_s: float | None, user_id: str) -> _Session:
    return _Session(
        name=key.name, role=key.role.name.lower(), left_s=None if left_s is None else round(left_s), user_id=user_id
    )


@router.get(_SESSION)
async def show_session(request: Request, response: Response, keyring: KeyringOf, settings: SettingsOf) -> _Session:
    """Whose key the browser signed in with. Without a key: nulls, and the cookie of an ended session is removed."""
    response.headers.update(_HEADERS | _PRIVATE)
    token = _session(request)
    try:
        key = KeyHolder(keyring, Role.READER)(request)
    except GatewayError:
        if token is not None:
            _remove_cookies(response, request)
        return _Session()
    assert key is not None
    return _described(key, keyring.sessions.left_s(token) if token else None, settings.user_id)


@router.post(_SESSION)
async def sign_in(
    request: Request,
    response: Response,
    keyring: KeyringOf,
    settings: SettingsOf,
    asked: Annotated[_SignIn, Body()],
) -> _Session:
    """Begin a session with a key that sees everything. Its token goes into a cookie that no script can read."""
    response.headers.update(_HEADERS | _PRIVATE)
    _require_same_origin(request)
    token = asked.key.strip()
    _require_may_see(keyring.find(token))
    if (earlier := _session(request)) is not None:
        keyring.sessions.end(earlier)
    session, key = keyring.begin_session(token)
    _set_cookie(response, request, session)
    log.info("console session began", who=key.name, role=key.role.name.lower())
    return _described(key, keyring.sessions.left_s(session), settings.user_id)


@router.delete(_SESSION, status_code=204)
async def sign_out(request: Request, keyring: KeyringOf) -> Response:
    """End the session. Safe to repeat."""
    _require_same_origin(request)
    if (token := _session(request)) is not None:
        keyring.sessions.end(token)
    response = Response(status_code=204, headers=_HEADERS | _PRIVATE)
    _remove_cookies(response, request)
    return response


# ------------------------------------------------------------------ the overview, live


@router.get("/console/events", response_class=StreamingResponse)
async def events(request: Request, keyring: KeyringOf, feed: FeedOf) -> StreamingResponse:
    """Server-sent events `overview`. The last one, `end`, says that the session has ended."""
    holder = KeyHolder(keyring, Role.READER)
    key = holder(request)
    assert key is not None
    feed.require_place(key.name)

    async def stream() -> AsyncIterator[str]:
        async with contextlib.aclosing(feed.events(key.name)) as all_events:
            async for event in all_events:
                if not holder.lets_pass(request):
                    yield "event: end\ndata: {}\n\n"
                    return
                yield event

    headers = _HEADERS | _PRIVATE | {"X-Accel-Buffering": "no"}  # nginx would hold events back
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


# ------------------------------------------------------------------ static files


def _sent(request: Request, file: File) -> Response:
    headers = _HEADERS | _REVALIDATED | {"ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)


@router.get("/console")
async def console(request: Request) -> Response:
    return _sent(request, _FILES[INDEX])


@router.get("/console/{path:path}")
async def static_file(request: Request, path: str) -> Response:
    file = _FILES.get(path)
    if file is None:
        raise NotFound(f"there is nothing at /console/{path[:200]}", "the console is at /console")
    return _sent(request, file)
