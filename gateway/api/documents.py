"""`/admin/users/{user_id}/…`: the documents of one user, folder by folder through the same routes."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from gateway.api.jobs import accepted
from gateway.documents.digest import declared
from gateway.documents.layout import Place, avatar_place, check_avatar, check_name, image_place, resolve
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
_UNBOUNDED = 1 << 62  # the library bounds what it stores, and says so in our own words
_AVATAR = "/avatars/{avatar_id}"
_ANY = "/avatars/{avatar_id}/{path:path}"

UserId = Annotated[str, Path(description="the gateway's GATEWAY_USER_ID; every other one is not here")]
AvatarId = Annotated[str, Path(description="an avatar's id", examples=["ada"])]
AnyPath = Annotated[str, Path(description="a folder, or folder/name of a document", examples=["vectorstore_data/a.md"])]
Name = Annotated[str, Path(description="a document's name", examples=["portrait.png"])]
Used = Annotated[
    bool | None, Query(description="the flag; a new document's is true unless said, a replaced one keeps its own")
]
Sha256 = Annotated[str | None, Query(description="the SHA-256 of the body in hex; another body is refused")]
LinkS = Annotated[int | None, Query(ge=1, le=604_800, description="answer with a link that works for so many seconds")]
Prefix = Annotated[str, Query(description="only names that begin with this")]
After = Annotated[str, Query(description="only names after this one: `next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
Digests = Annotated[bool, Query(description="read the documents whose SHA-256 is not known yet")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DocumentBody(BaseModel):
    name: str = Field(description="below its folder; may have `/` in it")
    size_bytes: int = Field(description="of its bytes")
    type: str = Field(description="media type, by the end of the name")
    modified_at: datetime = Field(description="when it was stored")
    etag: str = Field(description="for If-Match and If-None-Match; changes whenever the bytes do")
    digest: str = Field(description="`sha256:…` where the bytes are known, else the store's own `tag:…`")
    used: bool | None = Field(description="its flag; null in folders without flags")


class DocumentList(BaseModel):
    documents: list[DocumentBody] = Field(description="in the order of their names")
    next: str | None = Field(description="what to give as `after` for more; null at the end")


class AvatarList(BaseModel):
    avatars: list[str] = Field(description="the ids of all that have anything in the store")


class ChangeFlags(_Asked):
    used: StrictBool | None = Field(None, description="for the document, or for every one of the folder")
    flags: dict[str, StrictBool] | None = Field(None, description="of a folder: the flag of each document by name")


class Flags(BaseModel):
    flags: dict[str, bool] = Field(description="of every document of the folder")


class CopyTo(_Asked):
    avatar_id: str | None = Field(None, description="of the copy; the same avatar if left out")
    path: str = Field(description="folder/name of the copy")
    replace: bool = Field(False, description="whether what has that name already may be replaced")


class DeleteAvatar(_Asked):
    avatar_id: str = Field(description="once more, so that nobody does it by mistake")
    keep_collection: bool = Field(False, description="leave what it was trained into in Chroma")


def body_bound(scope: Scope, max_document_bytes: int) -> int | None:
    """How long the body of a request to these routes may be; None if it is not one of those with long bodies."""
    if not scope.get("path", "").startswith("/admin/users/"):
        return None
    return {"PUT": max_document_bytes, "PATCH": _MAX_JSON_BYTES}.get(scope["method"])


@dataclass(frozen=True, slots=True)
class Documents:
    """What the routes work with."""

    store: DocumentStore
    trainer: Trainer
    jobs: Jobs


def _documents(request: Request, user_id: str) -> Documents:
    documents: Documents = request.app.state.documents
    if user_id != documents.store.user_id:
        raise NotFound(
            f"this gateway does not serve user {user_id[:80]!r}", "it serves the one that GATEWAY_USER_ID names"
        )
    return documents


router = APIRouter(prefix="/admin/users/{user_id}", tags=["documents"])


# ------------------------------------------------------------------ avatars


@router.get("/avatars", summary="List avatars")
async def list_avatars(request: Request, user_id: UserId) -> AvatarList:
    return AvatarList(avatars=await _documents(request, user_id).store.avatars())


@router.delete(_AVATAR, status_code=202, summary="Delete an avatar with everything under it")
async def delete_avatar(
    request: Request, response: Response, user_id: UserId, avatar_id: AvatarId, asked: Annotated[DeleteAvatar, Body()]
) -> JobStatus:
    """A job. The documents go, and the collection that the avatar was trained into. Safe to repeat."""
    documents = _documents(request, user_id)
    if asked.avatar_id != check_avatar(avatar_id):
        raise InvalidRequest(f"the body names avatar {asked.avatar_id[:80]!r}, the path {avatar_id!r}")
    contents = await documents.store.contents(avatar_id)
    if not contents:
        raise NotFound(f"there is nothing of avatar {avatar_id!r}")

    documents.trainer.require_free(avatar_id)

    async def delete(progress: Any) -> dict[str, Any]:
        # First what may be refused.
        async with documents.trainer.forgetting(user_id, avatar_id, keep=asked.keep_collection) as collection:
            progress.phase("delete", len(contents), "objects")
            await documents.store.delete_contents(contents, lambda _: progress.advance(1))
        return {"objects": len(contents), "bytes": sum(info.size_bytes for info in contents), "collection": collection}

    return accepted(documents.jobs.start("delete-avatar", avatar_id, delete), response)


@router.post(f"{_AVATAR}/vectorstore/train", status_code=202, summary="Train an avatar's collection")
async def train(
    request: Request,
    response: Response,
    user_id: UserId,
    avatar_id: AvatarId,
    asked: Annotated[Training | None, Body()] = None,
) -> JobStatus:
    """A job. At its end the collection has exactly the chunks of the documents whose flag is true.

    What did not change costs nothing; running it again after any failure is right.
    """
    documents = _documents(request, user_id)
    check_avatar(avatar_id)
    work = documents.trainer.work(documents.store, avatar_id, asked or Training())
    return accepted(documents.jobs.start("train", avatar_id, work), response)


# ------------------------------------------------------------------ documents


def _place(
    request: Request, user_id: str, avatar_id: str, path: str, *, writing: bool = False
) -> tuple[Documents, Place, str | None]:
    documents = _documents(request, user_id)
    folder, name = resolve(path)
    if writing and folder.read_only:
        raise NotAllowed(f"{folder.path} holds flags", "change them with PATCH on the documents' own folder")
    if name is not None:
        check_name(name, folder)
    return documents, avatar_place(user_id, avatar_id, folder), name


def _named(name: str | None, path: str) -> str:
    if name is None:
        raise NotAllowed(f"{path} is a folder", "name a document in it")
    return name


async def _list_or_read(
    request: Request,
    documents: Documents,
    place: Place,
    name: str | None,
    query: "tuple[str, str, int, bool, int | None]",
) -> Response:
    prefix, after, limit, with_digests, link_s = query
    store = documents.store
    if name is None:
        page = await store.page(place, prefix=prefix, after=after, limit=limit, with_digests=with_digests)
        body = DocumentList(documents=[_body(each) for each in page.documents], next=page.next)
        return JSONResponse(body.model_dump(mode="json"))
    if link_s is not None:
        return JSONResponse({"url": await store.link(place, name, link_s), "expires_in_s": link_s})
    return await _read(request, store, place, name)


@router.head(_ANY, include_in_schema=False)
@router.get(_ANY, summary="List a folder, or read a document", response_model=None)
async def get_documents(
    request: Request,
    user_id: UserId,
    avatar_id: AvatarId,
    path: AnyPath,
    prefix: Prefix = "",
    after: After = "",
    limit: Limit = 100,
    digests: Digests = False,
    link_s: LinkS = None,
) -> Response:
    """A folder as `{"documents": […], "next"}`; a document as its bytes, with ETag, ranges and 304."""
    documents, place, name = _place(request, user_id, avatar_id, path)
    return await _list_or_read(request, documents, place, name, (prefix, after, limit, digests, link_s))


@router.put(_ANY, summary="Store a document", max_body_size=_UNBOUNDED)
async def put_document(
    request: Request,
    response: Response,
    user_id: UserId,
    avatar_id: AvatarId,
    path: AnyPath,
    used: Used = None,
    sha256: Sha256 = None,
) -> DocumentBody:
    """The body is the document, however large. 201 if it is new, 200 if it replaced one.

    `If-None-Match: *` stores only a new one, `If-Match: "etag"` only over the one that has it. With
    `Content-Digest`, `Content-MD5` or `sha256` a body that is another one is not stored.
    """
    documents, place, name = _place(request, user_id, avatar_id, path, writing=True)
    return await _put(request, response, documents.store, place, _named(name, path), used, sha256)


@router.patch(_ANY, summary="Change flags", max_body_size=_MAX_JSON_BYTES)
async def change_flags(
    request: Request, user_id: UserId, avatar_id: AvatarId, path: AnyPath, asked: Annotated[ChangeFlags, Body()]
) -> Flags | DocumentBody:
    """Of one document `{"used": …}`; of a folder `{"flags": {…}}`, or `{"used": …}` for every document in it."""
    documents, place, name = _place(request, user_id, avatar_id, path, writing=True)
    store = documents.store
    if (asked.used is None) == (asked.flags is None) or (name is not None and asked.used is None):
        raise InvalidRequest('say either {"used": …} or, of a folder, {"flags": {"name": …}}')
    if name is not None:
        await store.document(place, name)  # raises NotFound
        await store.set_flags(place, {name: bool(asked.used)})
        return _body(await store.document(place, name))
    names = {document.name async for document in store.all(place)}
    changes = asked.flags if asked.flags is not None else dict.fromkeys(names, bool(asked.used))
    if unknown := sorted(changes.keys() - names):
        raise NotFound(f"there is no document {unknown[0][:80]!r} in {place.folder.path}", "nothing was changed")
    return Flags(flags=await store.set_flags(place, changes, repair=True))


@router.post(_ANY, status_code=201, summary="Copy a document")
async def copy_document(
    request: Request, user_id: UserId, avatar_id: AvatarId, path: AnyPath, asked: Annotated[CopyTo, Body()]
) -> DocumentBody:
    """Within the store, to any folder of any avatar of the user; its flag goes with it."""
    documents, source, name = _place(request, user_id, avatar_id, path)
    _, target, new_name = _place(request, user_id, asked.avatar_id or avatar_id, asked.path, writing=True)
    return _body(
        await documents.store.copy(
            source, _named(name, path), target, _named(new_name, asked.path), if_absent=not asked.replace
        )
    )


@router.delete(_ANY, status_code=204, summary="Delete a document")
async def delete_document(
    request: Request,
    user_id: UserId,
    avatar_id: AvatarId,
    path: AnyPath,
    if_match: Annotated[str | None, Header()] = None,
) -> None:
    """With its flag. Its chunks leave the collection with the next training."""
    documents, place, name = _place(request, user_id, avatar_id, path, writing=True)
    await documents.store.delete(place, _named(name, path), if_tag=_tag(if_match))


# ------------------------------------------------------------------ the user's own image


@router.get("/image", summary="List the user's own images", response_model=None)
async def list_images(
    request: Request,
    user_id: UserId,
    prefix: Prefix = "",
    after: After = "",
    limit: Limit = 100,
    digests: Digests = False,
) -> Response:
    return await _list_or_read(
        request, _documents(request, user_id), image_place(user_id), None, (prefix, after, limit, digests, None)
    )


@router.head("/image/{path:path}", include_in_schema=False)
@router.get("/image/{path:path}", summary="Read an image", response_model=None)
async def get_image(request: Request, user_id: UserId, path: Name, link_s: LinkS = None) -> Response:
    return await _list_or_read(
        request, _documents(request, user_id), image_place(user_id), path, ("", "", 1, False, link_s)
    )


@router.put("/image/{path:path}", summary="Store an image", max_body_size=_UNBOUNDED)
async def put_image(
    request: Request, response: Response, user_id: UserId, path: Name, sha256: Sha256 = None
) -> DocumentBody:
    """As for any document."""
    store = _documents(request, user_id).store
    return await _put(request, response, store, image_place(user_id), path, None, sha256)


@router.delete("/image/{path:path}", status_code=204, summary="Delete an image")
async def delete_image(
    request: Request, user_id: UserId, path: Name, if_match: Annotated[str | None, Header()] = None
) -> None:
    await _documents(request, user_id).store.delete(image_place(user_id), path, if_tag=_tag(if_match))


# ------------------------------------------------------------------ inside


async def _put(
    request: Request,
    response: Response,
    store: DocumentStore,
    place: Place,
    name: str,
    used: bool | None,
    sha256: str | None,
) -> DocumentBody:
    headers = request.headers
    if_none_match, if_match = headers.get("if-none-match"), headers.get("if-match")
    if if_none_match not in (None, "*"):
        raise InvalidRequest("If-None-Match: only * can be said of an upload")
    tag = _tag(if_match)
    if if_match == "*":
        try:
            tag = (await store.document(place, name)).tag
        except NotFound:
            raise PreconditionFailed(f"there is no document {name!r} to replace") from None
    document, is_new = await store.put(
        place,
        name,
        _body_of(request),
        expected=declared(headers.get("content-digest"), headers.get("content-md5"), sha256),
        if_absent=if_none_match == "*",
        if_tag=tag,
        used=used,
    )
    response.status_code = 201 if is_new else 200
    response.headers["ETag"] = f'"{document.tag}"'
    if is_new:
        response.headers["Location"] = quote(request.url.path)
    return _body(document)


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise InvalidRequest("the upload broke off; nothing was stored", "send it again") from None


async def _read(request: Request, store: DocumentStore, place: Place, name: str) -> Response:
    document = await store.document(place, name)
    etag = f'"{document.tag}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Last-Modified": format_datetime(document.modified_at, usegmt=True),
        # What users upload is never a page of this server.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }
    asked = request.headers
    if (if_match := asked.get("if-match")) and not _lists(if_match, document.tag):
        raise PreconditionFailed(f"{name!r} is not what it was")
    if (if_none_match := asked.get("if-none-match")) and _lists(if_none_match, document.tag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, document.size_bytes, 200
    ranged = _RANGE.fullmatch(asked.get("range", "").strip())
    if ranged and (ranged[1] or ranged[2]) and asked.get("if-range", etag) == etag:
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
    pieces = store.read(place, document, start, end - start)
    try:
        # Before the head is sent: afterwards no error can be told.
        first = await anext(pieces, b"")
    except ObjectMissing:
        raise Unavailable(f"{name!r} was replaced at this moment", "ask again") from None

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(body(), status, headers, document.type)


def _lists(header: str, tag: str) -> bool:
    return header.strip() == "*" or any(each.strip().removeprefix("W/") == f'"{tag}"' for each in header.split(","))


def _tag(if_match: str | None) -> str | None:
    """The tag that `If-Match` names; None where it names none. Raises InvalidRequest for more than one."""
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
