"""The routes `/admin/databases` and `/admin/collections*`: list them, check and repair an index."""

import asyncio
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from gateway.api.deps import Operator, StoreOf
from gateway.api.jobs import ACCEPTED, Wait, accepted
from gateway.chroma.listing import ListedCollection, Name, Wanted, read_databases, read_one, read_page
from gateway.errors import InvalidRequest, NotFound
from gateway.jobs import JobStatus, Progress, Result
from gateway.vectorstore import RepairReport, VectorStore

_MAX_NAMED_IDS = 10_000

CollectionPath = Annotated[str, Path(description="its UUID, or its name", examples=["notes"])]
OfTenant = Annotated[str, Query(description="of a name")]
OfDatabase = Annotated[str, Query(description="of a name")]
After = Annotated[str, Query(description="only what comes after: `next` of the previous page")]
Limit = Annotated[int, Query(ge=1, le=1000, description="the most entries in the answer")]


class IndexFiles(BaseModel):
    state: Literal["empty", "sound", "changed", "torn", "unreadable", "quarantined"] = Field(
        description="`sound`: the files were read, and have not changed since. `changed`: Chroma has written them since"
        " they were last read. `empty`: Chroma has not synced it yet. `torn`: they are damaged, and are repaired at"
        " Chroma's next start. `unreadable`: Chroma does not read the collection. `quarantined`: it is not asked to"
    )
    problem: str | None = Field(description="what is wrong, null if nothing is known to be")
    size_bytes: int = Field(description="size of the files")
    log_backlog: int = Field(description="rows of Chroma's log that the files do not contain")


class ListedCollectionBody(BaseModel):
    tenant: str = Field(description="its tenant")
    database: str = Field(description="its database")
    name: str = Field(description="its name")
    id: str = Field(description="its UUID")
    records: int = Field(description="number of records")
    dimension: int | None = Field(description="of its vectors, null before the first record")
    space: str = Field(description="the distance function: `l2`, `cosine` or `ip`")
    max_neighbors: int = Field(description="HNSW's M")
    ef_construction: int = Field(description="HNSW's ef_construction")
    index: IndexFiles = Field(description="the files of its index")


class CollectionList(BaseModel):
    collections: list[ListedCollectionBody] = Field(description="sorted by tenant, database and name")
    total: int = Field(description="how many there are on all pages")
    next: str | None = Field(description="give it as `after` to get the next page; null at the end")


class DatabaseBody(BaseModel):
    tenant: str = Field(description="its tenant")
    name: str = Field(description="its name")
    collections: int = Field(description="number of collections")


class DatabaseList(BaseModel):
    databases: list[DatabaseBody] = Field(description="sorted by tenant and name")
    next: str | None = Field(description="give it as `after` to get the next page; null at the end")


class Repaired(BaseModel):
    collection: str = Field(description="its name, with tenant and database where they are not Chroma's defaults")
    collection_id: str = Field(description="its UUID")
    way: str = Field(
        description="what the index is made of: `copy` of an older one, `log` of Chroma, a new `id-map`, `salvage` of"
        " the torn files, `rebuild` of its own sound vectors, or `none` where nothing was wrong or could be made better"
    )
    problems: list[str] = Field(description="what was wrong")
    is_sound: bool = Field(description="whether the index is sound now")
    is_readable: bool = Field(description="whether Chroma reads the collection now; all others are served either way")
    unreadable_because: str | None = Field(None, description="why it does not")
    from_index: int = Field(description="records whose vector is in the index now, from a copy or as it was")
    from_torn_files: int = Field(description="records whose vector came out of torn files")
    from_log: int = Field(description="rows of Chroma's log that were applied on top")
    lost: int = Field(description="records of which no vector is left; upserting them brings them back")
    lost_ids: list[str] = Field(description=f"their ids, at most {_MAX_NAMED_IDS}")
    doubtful_ids: list[str] = Field(
        description=f"records whose vector may be an earlier one, at most {_MAX_NAMED_IDS}; upserting them decides"
    )
    duration_s: float = Field(description="how long the repair took")
    outage_s: float = Field(description="how long Chroma was stopped for it")


def _repaired(report: RepairReport) -> Repaired:
    repair = report.repair
    salvaged = repair.salvaged if repair.way == "salvage" else 0
    return Repaired(
        collection=repair.segment.name,
        collection_id=repair.segment.collection_id,
        way=repair.way.value,
        problems=[str(each) for each in repair.before.problems],
        is_sound=repair.after.is_sound,
        is_readable=report.unreadable is None,
        unreadable_because=report.unreadable,
        from_index=max(0, repair.after.ids - salvaged),
        from_torn_files=salvaged,
        from_log=repair.replayed,
        lost=len(repair.lost_ids),
        lost_ids=list(repair.lost_ids[:_MAX_NAMED_IDS]),
        doubtful_ids=list(repair.doubtful_ids[:_MAX_NAMED_IDS]),
        duration_s=round(repair.duration_s, 3),
        outage_s=round(report.outage_s, 3),
    )


def _cursor(after: str, parts: int) -> list[str]:
    """The names in `next` of the previous page; empty ones for the first page. Raises InvalidRequest."""
    if not after:
        return [""] * parts
    try:
        names = json.loads(after)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != parts or not all(isinstance(each, str) for each in names):
        raise InvalidRequest("query.after: this is no `next` of a page", "send it as it was in the answer")
    return names


def _listed(found: ListedCollection, store: VectorStore, problem: str | None = None) -> ListedCollectionBody:
    """`problem`: what a check of the files found just now."""
    segment = found.segment
    full_name = f"{segment.tenant}/{segment.database}/{segment.collection}"
    known = {
        "quarantined": store.quarantine.quarantined.get(segment.collection_id),
        "unreadable": store.watch.unreadable.get(full_name),
        "torn": problem or store.operations.snapshotter.torn_indexes(store.watch.starts).get(segment.id),
    }
    state, why = next(((each, why) for each, why in known.items() if why), (found.index_state.value, None))
    return ListedCollectionBody(
        tenant=segment.tenant,
        database=segment.database,
        name=segment.collection,
        id=segment.collection_id,
        records=found.records,
        dimension=segment.dimension,
        space=segment.space,
        max_neighbors=segment.neighbors,
        ef_construction=segment.ef_construction,
        index=IndexFiles(state=state, problem=why, size_bytes=found.index_bytes, log_backlog=found.log_backlog),
    )


router = APIRouter(prefix="/admin", tags=["collections"])


@router.get("/databases", summary="List databases")
async def list_databases(store: StoreOf, limit: Limit = 100, after: After = "") -> DatabaseList:
    """Every database of every tenant, also those without a collection."""
    names = _cursor(after, 2)
    found, has_more = await asyncio.to_thread(read_databases, store.directory.path, (names[0], names[1]), limit)
    bodies = [DatabaseBody(tenant=each.tenant, name=each.database, collections=each.collections) for each in found]
    return DatabaseList(databases=bodies, next=json.dumps(found[-1][:2]) if has_more else None)


@router.get("/collections", summary="List collections")
async def list_collections(
    store: StoreOf,
    tenant: Annotated[str, Query(description="only of this tenant")] = "",
    database: Annotated[str, Query(description="only of databases with this name")] = "",
    name: Annotated[str, Query(max_length=512, description="only names that contain this, in any case")] = "",
    limit: Limit = 100,
    after: After = "",
) -> CollectionList:
    """The collections of all databases, with what is known of their indexes without reading these."""
    wanted = Wanted(tenant, database, name, Name(*_cursor(after, 3)))
    page = await asyncio.to_thread(read_page, store.directory.path, wanted, limit)
    return CollectionList(
        collections=[_listed(each, store) for each in page.collections],
        total=page.total,
        next=json.dumps(page.last) if page.last else None,
    )


@router.get("/collections/{collection}", summary="Show one collection")
async def show_collection(
    store: StoreOf,
    collection: CollectionPath,
    tenant: OfTenant = "default_tenant",
    database: OfDatabase = "default_database",
    check: Annotated[
        bool, Query(description="read the files of its index, which takes about a second for 500 MB")
    ] = False,
) -> ListedCollectionBody:
    """As in the list. With `check` the files of its index are read, while Chroma goes on."""
    segment = await asyncio.to_thread(store.chroma.find, collection, tenant, database)
    problems = await store.chroma.check(segment) if check else []
    found = await asyncio.to_thread(read_one, store.directory.path, segment.collection_id)
    if found is None:
        raise NotFound(f"the collection {segment.name} was just deleted")
    return _listed(found, store, "; ".join(problems) or None)


@router.post(
    "/collections/{collection}/repair",
    summary="Repair the index of a collection",
    response_model=Repaired | JobStatus,
    responses=ACCEPTED,
)
async def repair_collection(
    operator: Operator,
    response: Response,
    collection: CollectionPath,
    tenant: OfTenant = "default_tenant",
    database: OfDatabase = "default_database",
    rebuild: Annotated[bool, Query(description="build a sound index anew too")] = False,
    wait: Wait = True,
) -> Result:
    """Chroma is restarted once, and the index is checked and repaired in between. It ends a quarantine.

    Writes wait meanwhile. Reads get 503 with `Retry-After`. A sound index is left as it is, unless the collection is in
    quarantine or `rebuild` says so: then a new one is built of the same vectors.
    """

    async def work(progress: Progress) -> Repaired:
        return _repaired(await operator.store.repair(collection, tenant, database, progress, rebuild=rebuild))

    job = await operator.begin("repair", collection, work)
    return await job.outcome() if wait else accepted(job, response)
