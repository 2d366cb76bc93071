"""`jobs`: the long operations of a running gateway."""

from typing import Annotated, Any

import typer

from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import age, print_json, size, table
from gateway.jobs import JobStatus

JobId = Annotated[str, typer.Argument(help="A job's id, as `jobs list` shows it.")]

jobs = typer.Typer(help="The jobs of the running gateway: snapshots, restores and other long operations.")


@jobs.command("list")
def list_jobs(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """List the jobs since the gateway's start, newest first. Of the ended ones it remembers the last hundred."""
    with connect(url, token) as gateway:
        found = gateway.request("GET", "/admin/jobs")
    if as_json:
        print_json(found)
        return
    statuses = [JobStatus.model_validate(job) for job in found["jobs"]]
    for line in table([_row(job) for job in statuses], right={0}):
        typer.echo(line)
    if not statuses:
        typer.echo("there is no job yet", err=True)


@jobs.command("show")
def show_job(job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Show one job: how far it is, or how it ended."""
    with connect(url, token) as gateway:
        _print_job(gateway.request("GET", f"/admin/jobs/{job_id}"), as_json)


@jobs.command("cancel")
def cancel_job(job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Cancel one job, and wait until it has cleaned up. A job that has ended stays as it is."""
    with connect(url, token) as gateway:
        _print_job(gateway.request("DELETE", f"/admin/jobs/{job_id}"), as_json)


def _print_job(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    status = JobStatus.model_validate(job)
    typer.echo("  ".join(cell for cell in _row(status) if cell))
    if status.error is not None:
        typer.echo(f"  {status.error['message']}")


def _row(job: JobStatus) -> list[str]:
    started = job.started_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [job.id, job.kind, job.subject, job.state, started, _progress(job)]


def _progress(job: JobStatus) -> str:
    """How far a running job is, or how long an ended one took."""
    if job.ended_at is not None:
        return f"took {age((job.ended_at - job.started_at).total_seconds())}"
    if job.phase is None:
        return ""
    amount = size if job.unit == "bytes" else "{:.0f}".format
    done = amount(job.done) if job.total is None else f"{amount(job.done)} of {amount(job.total)}"
    return f"{job.phase} {done}" + (f", {age(job.remaining_s)} left" if job.remaining_s is not None else "")
