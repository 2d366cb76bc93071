"""`jobs`: the long operations of a running gateway."""

from datetime import datetime
from typing import Annotated

import typer

from gateway.admin import Job
from gateway.cli.client import connect
from gateway.cli.options import AsJson, Token, Url
from gateway.cli.output import age, print_json, size, table

JobId = Annotated[str, typer.Argument(help="A job's id, as `jobs list` shows it.")]

jobs = typer.Typer(help="The jobs of the running gateway: snapshots, restores and other long operations.")


@jobs.command("list")
def list_jobs(url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """List the jobs since the gateway's start, newest first. Of the ended ones it remembers the last hundred."""
    with connect(url, token) as gateway:
        found = gateway.jobs.list()
    if as_json:
        print_json({"jobs": found})
        return
    for line in table([_row(job) for job in found], right={0}):
        typer.echo(line)
    if not found:
        typer.echo("there is no job yet", err=True)


@jobs.command("show")
def show_job(job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Show one job: how far it is, or how it ended."""
    with connect(url, token) as gateway:
        _print_job(gateway.jobs.get(job_id), as_json)


@jobs.command("cancel")
def cancel_job(job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """Cancel one job, and wait until it has cleaned up. A job that has ended stays as it is."""
    with connect(url, token) as gateway:
        _print_job(gateway.jobs.cancel(job_id), as_json)


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    typer.echo("  ".join(cell for cell in _row(job) if cell))
    if error := job.get("error"):
        typer.echo(f"  {error['message']}")


def _row(job: Job) -> list[str]:
    started = datetime.fromisoformat(job["started_at"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [job["id"], job["kind"], job["subject"], job["state"], started, _progress(job)]


def _progress(job: Job) -> str:
    """How far a running job is, or how long an ended one took."""
    if ended_at := job.get("ended_at"):
        took = datetime.fromisoformat(ended_at) - datetime.fromisoformat(job["started_at"])
        return f"took {age(took.total_seconds())}"
    if (phase := job.get("phase")) is None:
        return ""
    amount = size if job.get("unit", "bytes") == "bytes" else "{:.0f}".format
    done, total, remaining_s = amount(job["done"]), job.get("total"), job.get("remaining_s")
    if total is not None:
        done = f"{done} of {amount(total)}"
    return f"{phase} {done}" + (f", {age(remaining_s)} left" if remaining_s is not None else "")
