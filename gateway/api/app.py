"""The admin application: every route but the data path's, and what errors look like."""

import difflib
import re
from collections.abc import Collection
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

import gateway
from gateway.api import check as check_api
from gateway.api import collections as collections_api
from gateway.api import console as console_api
from gateway.api import documents as documents_api
from gateway.api import health as health_api
from gateway.api import jobs as jobs_api
from gateway.api import journal as journal_api
from gateway.api import reference
from gateway.api import snapshots as snapshot_api
from gateway.api.deps import Described, provide
from gateway.api.key_holder import KeyHolder, scraper_of
from gateway.api.parameters import fields_of_body, require_known_parameters
from gateway.auth.keyring import Keyring
from gateway.auth.scope import Role
from gateway.config import Settings
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    NotAllowed,
    NotFound,
)

log = structlog.get_logger()

_MAX_ADMIN_BODY_BYTES = 64 << 10
_BELOW_A_FOLDER = re.compile(r"/admin/users/[^/]*/(avatars|image)/.+", re.DOTALL)
_DESCRIPTION = """
Administration of a Chroma Gateway. The data path `/api/*` is Chroma's own: [/chroma/docs](/chroma/docs) describes it.

Errors have Chroma's shape: `error`, `message` and, where we know what to do next, `hint`.
"""


def admin_application(settings: Settings, keyring: Keyring, *provided: object) -> FastAPI:
    """Every admin route. `provided` are the objects that the routes depend on; see `gateway.api.deps`."""
    app = FastAPI(
        title="Chroma Gateway",
        version=gateway.__version__,
        description=_DESCRIPTION,
        max_body_size=_MAX_ADMIN_BODY_BYTES,
        docs_url=None,  # `gateway.api.reference` has pages that work without a network
        redoc_url=None,
        redirect_slashes=False,  # see `_without_slash`
        responses={"default": {"model": ErrorBody, "description": "any error"}},
    )
    scraper = scraper_of(settings, keyring)
    provide(app, settings, scraper, keyring, *provided)
    app.include_router(health_api.public)
    app.include_router(reference.router)
    app.include_router(console_api.router)
    app.include_router(health_api.scraped, dependencies=[Depends(Described(scraper))])
    admin = (
        health_api.admin,
        check_api.router,
        snapshot_api.router,
        journal_api.router,
        collections_api.router,
        jobs_api.router,
        documents_api.router,
    )
    for router in admin:
        dependencies = [Depends(Described(KeyHolder(keyring, Role.ADMIN))), Depends(require_known_parameters)]
        app.include_router(router, dependencies=dependencies)

    @app.exception_handler(GatewayError)
    async def _ours(_request: Request, error: GatewayError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        message = "; ".join(_described(each, fields_of_body(request)) for each in problems)[:1000]
        hint = "GET /docs describes every route"
        if not request.headers.get("content-type", "application/json").startswith("application/json"):
            hint = "send JSON, and with it the header 'Content-Type: application/json'"
        elif any(each["type"] == "json_invalid" for each in problems):
            hint = """send JSON such as {"label": "nightly"}; in a shell, put it in single quotes"""
        return _answer(InvalidRequest(message, hint))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        match error.status_code:
            case 404:
                answer = _answer(NotFound(f"there is nothing at {request.url.path}", "GET /docs lists the routes"))
            case 405:
                allowed = ", ".join(_methods_of(request))
                answer = _answer(NotAllowed(f"{where}: this route takes {allowed}", "GET /docs describes every route"))
                answer.headers["Allow"] = allowed
                return answer
            case 413:
                answer = _answer(
                    BodyTooLarge(f"{where}: a request to the gateway itself may have {_MAX_ADMIN_BODY_BYTES} bytes")
                )
            case _:
                answer = _answer(InvalidRequest(f"{where}: {error.detail}"))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", path=request.url.path, exc_info=error)
        return _answer(GatewayError("the gateway failed unexpectedly", "its log says more"))

    return app


def _described(problem: dict[str, Any], fields: Collection[str]) -> str:
    """One thing that is wrong with a request. `fields` are those that its body may have."""
    where = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "json_invalid":
            return f"the body is not JSON: {problem['ctx']['error']}, at character {problem['loc'][-1]}"
        case "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), fields, 1)
            return f"{where}: there is no such field" + (f"; did you mean {near[0]}?" if near else "")
        case _:
            return f"{where}: {problem['msg']}"


def _methods_of(request: Request) -> list[str]:
    """The methods that the path of a request has."""
    path = {"type": "http", "path": request.scope["path"], "root_path": "", "headers": []}
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches(path | {"method": method})[0] is Match.FULL for route in routes)
    ]


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: str = Field(description="what kind; the name chromadb raises by where it has one")
    message: str = Field(description="what failed, and why")
    hint: str | None = Field(None, description="the way out, where we know it")


def bounded(app: ASGIApp, admins: KeyHolder, max_document_bytes: int) -> ASGIApp:
    """`app`, with what is not an admin's, and a declared body that is too long, refused before the body is read.

    FastAPI reads and parses a body first, and asks who sent it afterwards.
    """

    async def app_with_bounds(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = _get_for_head(_without_slash(scope))
        if scope["type"] == "http" and scope["path"].startswith("/admin/"):
            try:
                admins(Request(scope))
            except GatewayError as error:
                await _answer(error)(scope, receive, send)
                return
        if "\n" in scope.get("path", ""):
            # Routes are regular expressions whose `$` overlooks one at the end: it would be another document's name.
            broken = InvalidRequest(f"there is a line break in the path {scope['path']!r}", "no route or name has one")
            await _answer(broken)(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"") if scope["type"] == "http" else b""
        limited = scope.get("path") != snapshot_api.UPLOAD_PATH  # which has a limit of its own
        bound = documents_api.body_bound(scope, max_document_bytes) or _MAX_ADMIN_BODY_BYTES
        if limited and declared.isdigit() and int(declared) > bound:
            refusal = BodyTooLarge(f"the body of {scope['path']} may have {bound} bytes")
            await _answer(refusal)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return app_with_bounds


def _without_slash(scope: Scope) -> Scope:
    """`scope` of the same route without a slash at its end. A redirect would be taken for success by many clients.

    The names of documents keep theirs.
    """
    path: str = scope["path"]
    if path.endswith("/") and path != "/" and not _BELOW_A_FOLDER.fullmatch(path):
        return {**scope, "path": path.rstrip("/") or "/", "raw_path": scope.get("raw_path", b"").rstrip(b"/") or b"/"}
    return scope


def _get_for_head(scope: Scope) -> Scope:
    """`scope` of GET instead of HEAD: the server leaves the body out. Documents have a HEAD of their own."""
    if scope["method"] == "HEAD" and not scope["path"].startswith("/admin/users/"):
        return {**scope, "method": "GET"}
    return scope


def _answer(error: GatewayError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)
