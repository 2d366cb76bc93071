"""The route `/admin/collections/{collection}/repair`."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from gateway.api.deps import Operator
from gateway.api.jobs import ACCEPTED, Wait, accepted
from gateway.jobs import JobStatus, Progress, Result
from gateway.vectorstore import RepairReport

_MAX_NAMED_IDS = 10_000


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


router = APIRouter(prefix="/admin/collections", tags=["collections"])


@router.post(
    "/{collection}/repair",
    summary="Repair the index of a collection",
    response_model=Repaired | JobStatus,
    responses=ACCEPTED,
)
async def repair_collection(
    operator: Operator,
    response: Response,
    collection: Annotated[str, Path(description="its UUID, or its name", examples=["notes"])],
    tenant: Annotated[str, Query(description="of a name")] = "default_tenant",
    database: Annotated[str, Query(description="of a name")] = "default_database",
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
