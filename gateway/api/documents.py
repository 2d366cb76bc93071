"""`/admin/users/{user_id}/…`: the documents of one user. All folders share the same routes."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from gateway.api.deps import Needs
from gateway.api.jobs import accepted
from gateway.documents.digest import parse_digests
from gateway.documents.layout import Folder, avatar_folder, check_avatar, check_name, image_folder, resolve
from gateway.documents.store import Document, DocumentStore
from gateway.documents.train import Trainer, Training
from gateway.errors import (
    InvalidRequest,
    NotAllowed,
    NotFound,
    ObjectMissing,
    PreconditionFailed,
    RangeNotSatisfiable,
    Unavailable,
)
from gateway.jobs import Jobs, JobStatus

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MAX_JSON_BYTES = 8 << 20
_UNBOUNDED = 1 << 62  # DocumentStore limits the size, with an error of its own
_AVATAR = "/avatars/{avatar_id}"
_ANY = "/avatars/{avatar_id}/{path:path}"

UserId = Annotated[str, Path(description="must be the gateway's GATEWAY_USER_ID")]
AvatarId = Annotated[str, Path(description="an avatar's id", examples=["ada"])]
AnyPath = Annotated[str, Path(description="a folder, or folder/name of a document", examples=["vectorstore_data/a.md"])]
Name = Annotated[str, Path(description="a document's name", examples=["portrait.png"])]
Used = Annotated[
    bool | None, Query(description="the flag. Default: true for a new document, unchanged for a replaced one")
]
DeferFlag = Annotated[
    bool,
    Query(
        description="do not write the flag of a new document, if it is true: many uploads need one write of the flags "
        "then. The next training, or change of the folder's flags, writes it"
    ),
]
Sha256 = Annotated[str | None, Query(description="the SHA-256 of the body in hex. A body with another one is refused")]
LinkS = Annotated[
    int | None, Query(ge=1, le=604_800, description="answer with a link that is valid for so many seconds")
]
Prefix = Annotated[str, Query(description="only names with this prefix")]
After = Annotated[str, Query(description="only names after this one: `next` of the previous page")]
Limit = Annotated[int, Query(ge=1, le=1000, description="the most documents in the answer")]
Digests = Annotated[bool, Query(description="read the documents whose SHA-256 is not known yet")]


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DocumentBody(BaseModel):
    name: str = Field(description="relative to its folder; may contain `/`")
    size_bytes: int = Field(description="size")
    type: str = Field(description="media type, by the name's suffix")
    modified_at: datetime = Field(description="when it was stored")
    etag: str = Field(description="for If-Match and If-None-Match; changes with the bytes")
    digest: str = Field(
        description="`sha256:…` if the gateway has read the bytes. Else, as for a copy, `tag:…` of the store; a list "
        "with `?digests=true` reads them"
    )
    used: bool | None = Field(description="its flag; null in folders without flags")


class DocumentList(BaseModel):
    documents: list[DocumentBody] = Field(description="sorted by name")
    next: str | None = Field(description="give it as `after` to get the next page; null at the end")


class AvatarList(BaseModel):
    avatars: list[str] = Field(description="the ids of all avatars that have an object in the store")


class ChangeFlags(_RequestBody):
    used: StrictBool | None = Field(None, description="the flag of the document, or of every document of the folder")
    flags: dict[str, StrictBool] | None = Field(
        None, description="for a folder: flags by document name", examples=[{"a.md": True, "b.md": False}]
    )


class Flags(BaseModel):
    flags: dict[str, bool] = Field(
        description="of every document of the folder", examples=[{"a.md": True, "b.md": False}]
    )


class DocumentLink(BaseModel):
    url: str = Field(description="anybody who has it can download the document")
    expires_in_s: int = Field(description="how long it is valid, in seconds")


class CopyTo(_RequestBody):
    avatar_id: str | None = Field(None, description="of the copy. Default: the same avatar")
    path: str = Field(description="folder/name of the copy")
    replace: bool = Field(False, description="whether to replace an existing document")


class DeleteAvatar(_RequestBody):
    avatar_id: str = Field(description="must repeat the id in the path, against mistakes")
    keep_collection: bool = Field(False, description="keep its collection in Chroma")


_BYTES = {"type": "string", "format": "binary"}
_CONTENT: dict[str, Any] = {"*/*": {"schema": _BYTES}}  # the media type is that of the name
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _BYTES}}}}
_LISTED: dict[int | str, dict[str, Any]] = {200: {"model": DocumentList}}
_READ: dict[int | str, dict[str, Any]] = {
    200: {"model": DocumentLink, "content": _CONTENT, "description": "the document; with `link_s` a link to it"},
    206: {"content": _CONTENT, "description": "the bytes that `Range` names"},
    304: {"description": "not changed since `If-None-Match`"},
}
_LISTED_OR_READ = _READ | {
    200: {
        "model": DocumentList | DocumentLink,
        "content": _CONTENT,
        "description": "a folder: its documents; a document: its bytes, or with `link_s` a link to it",
    }
}


def body_bound(scope: Scope, max_document_bytes: int) -> int | None:
    """Return the largest body in bytes that these routes accept for this request, or None for the default limit."""
    if not scope.get("path", "").startswith("/admin/users/"):
        return None
    return {"PUT": max_document_bytes, "PATCH": _MAX_JSON_BYTES}.get(scope["method"])


@dataclass(frozen=True, slots=True)
class Documents:
    """What these routes need."""

    store: DocumentStore
    trainer: Trainer
    jobs: Jobs


async def _documents(user_id: UserId, documents: Annotated[Documents, Depends(Needs(Documents))]) -> Documents:
    if user_id != documents.store.user_id:
        raise NotFound(f"this gateway does not serve user {user_id[:80]!r}", "it serves the user of GATEWAY_USER_ID")
    return documents


DocumentsOf = Annotated[Documents, Depends(_documents)]

router = APIRouter(prefix="/admin/users/{user_id}", tags=["documents"])


# ------------------------------------------------------------------ avatars


@router.get("/avatars", summary="List avatars")
async def list_avatars(documents: DocumentsOf) -> AvatarList:
    return AvatarList(avatars=await documents.store.avatars())


@router.delete(_AVATAR, status_code=202, summary="Delete an avatar with everything under it")
async def delete_avatar(
    response: Response,
    documents: DocumentsOf,
    user_id: UserId,
    avatar_id: AvatarId,
    body: Annotated[DeleteAvatar, Body()],
) -> JobStatus:
    """Start a job that deletes the documents and the default collection. Safe to repeat."""
    if body.avatar_id != check_avatar(avatar_id):
        raise InvalidRequest(f"the body names avatar {body.avatar_id[:80]!r}, the path {avatar_id!r}")
    contents = await documents.store.contents(avatar_id)
    if not contents:
        raise NotFound(f"avatar {avatar_id!r} has no documents")

    documents.trainer.require_free(avatar_id)

    async def delete(progress: Any) -> dict[str, Any]:
        # First the step that may be refused.
        async with documents.trainer.deleting_collection(user_id, avatar_id, keep=body.keep_collection) as collection:
            progress.phase("delete", len(contents), "objects")
            await documents.store.delete_contents(contents, lambda _: progress.advance(1))
        return {"objects": len(contents), "bytes": sum(info.size_bytes for info in contents), "collection": collection}

    return accepted(documents.jobs.start("delete-avatar", avatar_id, delete), response)


@router.post(f"{_AVATAR}/vectorstore/train", status_code=202, summary="Train an avatar's collection")
async def train(
    response: Response,
    documents: DocumentsOf,
    avatar_id: AvatarId,
    body: Annotated[Training | None, Body()] = None,
) -> JobStatus:
    """Start a job. At its end the collection has exactly the chunks of the documents whose flag is true.

    Unchanged documents are skipped. Safe to repeat after any failure.
    """
    check_avatar(avatar_id)
    work = documents.trainer.work(documents.store, avatar_id, body or Training())
    return accepted(documents.jobs.start("train", avatar_id, work), response)


# ------------------------------------------------------------------ documents


def _resolved(documents: Documents, avatar_id: str, path: str, *, writing: bool = False) -> tuple[Folder, str | None]:
    kind, name = resolve(path)
    if writing and kind.read_only:
        raise NotAllowed(f"{kind.path} holds flags", "change them with PATCH on the documents' own folder")
    if name is not None:
        check_name(name, kind)
    return avatar_folder(documents.store.user_id, avatar_id, kind), name


def _named(name: str | None, path: str) -> str:
    if name is None:
        raise NotAllowed(f"{path} is a folder", "name a document in it")
    return name


async def _list_or_read(
    request: Request,
    documents: Documents,
    folder: Folder,
    name: str | None,
    query: "tuple[str, str, int, bool, int | None]",
) -> Response:
    prefix, after, limit, with_digests, link_s = query
    store = documents.store
    if name is None:
        page = await store.page(folder, prefix=prefix, after=after, limit=limit, with_digests=with_digests)
        page_body = DocumentList(documents=[_body(each) for each in page.documents], next=page.next)
        return JSONResponse(page_body.model_dump(mode="json"))
    if link_s is not None:
        link = DocumentLink(url=await store.link(folder, name, link_s), expires_in_s=link_s)
        return JSONResponse(link.model_dump())
    return await _read(request, store, folder, name)


@router.head(_ANY, include_in_schema=False)
@router.get(_ANY, summary="List a folder, or read a document", response_model=None, responses=_LISTED_OR_READ)
async def get_documents(
    request: Request,
    documents: DocumentsOf,
    avatar_id: AvatarId,
    path: AnyPath,
    prefix: Prefix = "",
    after: After = "",
    limit: Limit = 100,
    digests: Digests = False,
    link_s: LinkS = None,
) -> Response:
    """A folder gives `{"documents": […], "next"}`. A document gives its bytes, with ETag, ranges and 304."""
    folder, name = _resolved(documents, avatar_id, path)
    return await _list_or_read(request, documents, folder, name, (prefix, after, limit, digests, link_s))


@router.put(_ANY, summary="Store a document", max_body_size=_UNBOUNDED, openapi_extra=_BODY)
async def put_document(
    request: Request,
    response: Response,
    documents: DocumentsOf,
    avatar_id: AvatarId,
    path: AnyPath,
    used: Used = None,
    sha256: Sha256 = None,
    defer_flag: DeferFlag = False,
) -> DocumentBody:
    """The body is the document, of any size. 201 if it is new, 200 if it replaced one.

    `If-None-Match: *` only creates. `If-Match: "etag"` only replaces the document with that ETag. A body that does not
    match `Content-Digest`, `Content-MD5` or `sha256` is not stored.
    """
    folder, name = _resolved(documents, avatar_id, path, writing=True)
    store, named = documents.store, _named(name, path)
    return await _put(request, response, store, folder, named, sha256, used=used, defer_flag=defer_flag)


@router.patch(_ANY, summary="Change flags", max_body_size=_MAX_JSON_BYTES)
async def change_flags(
    documents: DocumentsOf, avatar_id: AvatarId, path: AnyPath, body: Annotated[ChangeFlags, Body()]
) -> Flags | DocumentBody:
    """For a document `{"used": …}`. For a folder `{"flags": {…}}`, or `{"used": …}` for all of its documents."""
    folder, name = _resolved(documents, avatar_id, path, writing=True)
    store = documents.store
    if (body.used is None) == (body.flags is None) or (name is not None and body.used is None):
        raise InvalidRequest('give either {"used": …} or, for a folder, {"flags": {"name": …}}')
    if name is not None:
        await store.document(folder, name)  # raises NotFound
        await store.set_flags(folder, {name: bool(body.used)})
        return _body(await store.document(folder, name))
    names = {document.name async for document in store.all(folder)}
    changes = body.flags if body.flags is not None else dict.fromkeys(names, bool(body.used))
    if unknown := sorted(changes.keys() - names):
        raise NotFound(f"there is no document {unknown[0][:80]!r} in {folder.kind.path}", "nothing was changed")
    return Flags(flags=await store.set_flags(folder, changes, repair=True))


@router.post(_ANY, status_code=201, summary="Copy a document")
async def copy_document(
    documents: DocumentsOf, avatar_id: AvatarId, path: AnyPath, body: Annotated[CopyTo, Body()]
) -> DocumentBody:
    """Copy within the store, to any folder of any avatar of the user. The flag is copied too."""
    source, name = _resolved(documents, avatar_id, path)
    target, new_name = _resolved(documents, body.avatar_id or avatar_id, body.path, writing=True)
    return _body(
        await documents.store.copy(
            source, _named(name, path), target, _named(new_name, body.path), if_absent=not body.replace
        )
    )


@router.delete(_ANY, status_code=204, summary="Delete a document")
async def delete_document(
    documents: DocumentsOf,
    avatar_id: AvatarId,
    path: AnyPath,
    if_match: Annotated[str | None, Header()] = None,
) -> None:
    """Delete a document and its flag. The next training deletes its chunks."""
    folder, name = _resolved(documents, avatar_id, path, writing=True)
    await documents.store.delete(folder, _named(name, path), if_tag=_tag(if_match))


# ------------------------------------------------------------------ the user's own image


@router.get("/image", summary="List the user's own images", response_model=None, responses=_LISTED)
async def list_images(
    request: Request,
    documents: DocumentsOf,
    user_id: UserId,
    prefix: Prefix = "",
    after: After = "",
    limit: Limit = 100,
    digests: Digests = False,
) -> Response:
    return await _list_or_read(request, documents, image_folder(user_id), None, (prefix, after, limit, digests, None))


@router.head("/image/{path:path}", include_in_schema=False)
@router.get("/image/{path:path}", summary="Read an image", response_model=None, responses=_READ)
async def get_image(
    request: Request, documents: DocumentsOf, user_id: UserId, path: Name, link_s: LinkS = None
) -> Response:
    return await _list_or_read(request, documents, image_folder(user_id), path, ("", "", 1, False, link_s))


@router.put("/image/{path:path}", summary="Store an image", max_body_size=_UNBOUNDED, openapi_extra=_BODY)
async def put_image(
    request: Request, response: Response, documents: DocumentsOf, user_id: UserId, path: Name, sha256: Sha256 = None
) -> DocumentBody:
    """As `PUT` of any document."""
    return await _put(request, response, documents.store, image_folder(user_id), path, sha256)


@router.delete("/image/{path:path}", status_code=204, summary="Delete an image")
async def delete_image(
    documents: DocumentsOf, user_id: UserId, path: Name, if_match: Annotated[str | None, Header()] = None
) -> None:
    await documents.store.delete(image_folder(user_id), path, if_tag=_tag(if_match))


async def _put(
    request: Request,
    response: Response,
    store: DocumentStore,
    folder: Folder,
    name: str,
    sha256: str | None,
    *,
    used: bool | None = None,
    defer_flag: bool = False,
) -> DocumentBody:
    headers = request.headers
    if_none_match, if_match = headers.get("if-none-match"), headers.get("if-match")
    if if_none_match not in (None, "*"):
        raise InvalidRequest("If-None-Match: an upload takes only *")
    tag = _tag(if_match)
    if if_match == "*":
        try:
            tag = (await store.document(folder, name)).tag
        except NotFound:
            raise PreconditionFailed(f"there is no document {name!r} to replace") from None
    document, is_new = await store.put(
        folder,
        name,
        _request_body(request),
        expected=parse_digests(headers.get("content-digest"), headers.get("content-md5"), sha256),
        if_absent=if_none_match == "*",
        if_tag=tag,
        used=used,
        defer_flag=defer_flag,
    )
    response.status_code = 201 if is_new else 200
    response.headers["ETag"] = f'"{document.tag}"'
    if is_new:
        response.headers["Location"] = quote(request.url.path)
    return _body(document)


async def _request_body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise InvalidRequest("the upload ended early; nothing was stored", "send it again") from None


async def _read(request: Request, store: DocumentStore, folder: Folder, name: str) -> Response:
    document = await store.document(folder, name)
    etag = f'"{document.tag}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Last-Modified": format_datetime(document.modified_at, usegmt=True),
        # Browsers must not show uploads as pages of this origin.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    request_headers = request.headers
    if (if_match := request_headers.get("if-match")) and not _lists(if_match, document.tag):
        raise PreconditionFailed(f"{name!r} is not what it was")
    if (if_none_match := request_headers.get("if-none-match")) and _lists(if_none_match, document.tag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, document.size_bytes, 200
    ranged = _RANGE.fullmatch(request_headers.get("range", "").strip())
    if ranged and (ranged[1] or ranged[2]) and request_headers.get("if-range", etag) == etag:
        if ranged[1]:
            start, end = int(ranged[1]), min(int(ranged[2] or end) + (1 if ranged[2] else 0), end)
        else:
            start = max(0, end - int(ranged[2]))
        if start >= document.size_bytes or end <= start:
            error = RangeNotSatisfiable(f"{name!r} has {document.size_bytes} bytes")
            return JSONResponse(error.body(), 416, {"Content-Range": f"bytes */{document.size_bytes}"})
        status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{document.size_bytes}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=document.type)
    pieces = store.read(folder, document, start, end - start)
    try:
        # Read before the head is sent: later an error could not be reported.
        first = await anext(pieces, b"")
    except ObjectMissing:
        raise Unavailable(f"{name!r} was replaced during the request", "retry") from None

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(body(), status, headers, document.type)


def _lists(header: str, tag: str) -> bool:
    return header.strip() == "*" or any(each.strip().removeprefix("W/") == f'"{tag}"' for each in header.split(","))


def _tag(if_match: str | None) -> str | None:
    """Return the tag in `If-Match`, or None if there is none. Raises InvalidRequest for more than one."""
    if if_match is None or if_match.strip() == "*":
        return None
    match = re.fullmatch(r'\s*"([^"]+)"\s*', if_match)
    if match is None:
        raise InvalidRequest("If-Match: give one ETag in double quotes, or *")
    return match[1]


def _body(document: Document) -> DocumentBody:
    return DocumentBody(
        name=document.name,
        size_bytes=document.size_bytes,
        type=document.type,
        modified_at=document.modified_at,
        etag=f'"{document.tag}"',
        digest=document.digest,
        used=document.used,
    )
