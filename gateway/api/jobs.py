"""The routes `/admin/jobs*`: list, show, watch and cancel jobs. Also what every route has that starts a job."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from gateway.api.deps import JobsOf
from gateway.jobs import Job, JobStatus

JobId = Annotated[str, Path(description="a job's id", examples=["7"])]
Wait = Annotated[
    bool, Query(description="answer when the job has ended; `false`: answer at once, with 202 and the job")
]
_EVENTS = "text/event-stream"
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "the state of the job"},
        "data": {"type": "string", "description": "the job, as JSON"},
    },
}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"model": JobStatus, "description": "for `wait=false`: the job has begun"}
}
"""The `responses` of a route that starts a job and has a parameter of the type `Wait`."""


class JobList(BaseModel):
    jobs: list[JobStatus] = Field(description="newest first")


def accepted(job: Job, response: Response) -> JobStatus:
    """The response for a job that is not waited for: status 202 and the job's URL in `Location`."""
    response.status_code = 202
    response.headers["Location"] = f"/admin/jobs/{job.id}"
    return job.status()


router = APIRouter(prefix="/admin/jobs", tags=["jobs"])


@router.get("", summary="List jobs")
async def list_jobs(jobs: JobsOf) -> JobList:
    """Jobs since the gateway started. Of the ended ones, the last hundred."""
    return JobList(jobs=[job.status() for job in jobs.all()])


@router.get("/{job_id}", summary="Show one job")
async def show_job(jobs: JobsOf, job_id: JobId) -> JobStatus:
    return jobs.get(job_id).status()


@router.get(
    "/{job_id}/events",
    summary="Watch one job",
    response_class=StreamingResponse,
    responses={200: {"content": {_EVENTS: {"schema": _EVENT}}, "description": "events"}},
)
async def watch_job(jobs: JobsOf, job_id: JobId) -> StreamingResponse:
    """Server-sent events. Each has the job as `GET /admin/jobs/{id}` shows it. The last one says how it ended."""
    job = jobs.get(job_id)

    async def events() -> AsyncIterator[str]:
        async for status in job.events():
            yield f"event: {status.state}\ndata: {status.model_dump_json()}\n\n"

    return StreamingResponse(events(), media_type=_EVENTS, headers={"Cache-Control": "no-store"})


@router.delete("/{job_id}", summary="Cancel one job")
async def cancel_job(jobs: JobsOf, job_id: JobId) -> JobStatus:
    """Answers when the job has stopped and cleaned up. A job that had already ended is shown as it ended."""
    job = jobs.get(job_id)
    await job.cancel()
    return job.status()
