"""The commands against a running gateway and against its store; jobs, archives and uploads over HTTP."""

import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.bare_chroma import bare_chroma
from tests.commands import run_command, run_process
from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.ports import free_port

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """A gateway with a collection of 300 records and one snapshot."""
    with gateway_process() as built:
        built.start()
        notes = built.client().create_collection("notes", embedding_function=None)
        notes.add(ids=[str(n) for n in range(300)], embeddings=[[n % 7, n % 11, n % 13] for n in range(300)])
        built.snapshot("first")
        yield built


def succeed(kept: Gateway, *arguments: str, **env: str) -> str:
    """What the command prints on stdout."""
    done = run_command(kept, *arguments, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scratch_of(kept: Gateway) -> list[Path]:
    scratch = kept.data_dir / ".gateway/scratch"
    return list(scratch.iterdir()) if scratch.exists() else []


def test_every_command_works_against_a_running_gateway(served: Gateway) -> None:
    """snapshot, list, show, verify, export, import, restore and delete do what they say."""
    shown = run_process(served, "snapshot", "--label", "by hand", "--json")
    assert shown.returncode == 0, shown.stderr
    taken = json.loads(shown.stdout)
    assert taken["label"] == "by hand"
    listed = succeed(served, "list")
    assert taken["id"] in listed
    assert "never verified" in listed
    assert json.loads(succeed(served, "verify", "--level", "boot", "--json"))["ok"]
    assert json.loads(succeed(served, "show", "--json"))["verified"]["level"] == "boot"
    assert "verified (boot)" in succeed(served, "list")
    succeed(served, "export", "out.tar")
    out = served.directory / "out"
    with tarfile.open(served.directory / "out.tar") as archive:
        archive.extractall(out, filter="data")
    with bare_chroma(out) as chroma:
        assert chroma.client().get_collection("notes", embedding_function=None).count() == 300
    imported = json.loads(succeed(served, "import", "out.tar", "--label", "again", "--json"))
    assert [each["records"] for each in imported["collections"]] == [300]
    assert json.loads(succeed(served, "import", "out", "--json"))["size_bytes"] > 0
    served.client().get_collection("notes", embedding_function=None).delete(ids=["1"])
    assert json.loads(succeed(served, "restore", imported["id"], "--json"))["id"] == imported["id"]
    assert served.client().get_collection("notes", embedding_function=None).count() == 300
    succeed(served, "delete", imported["id"])
    assert imported["id"] not in succeed(served, "list")
    assert scratch_of(served) == []


def test_jobs_quiesce_and_status_work_against_a_running_gateway(served: Gateway) -> None:
    """A snapshot is listed as a job; a quiesce shows in the status, and `resume` ends it."""
    succeed(served, "snapshot", "--label", "as a job")
    job = json.loads(succeed(served, "jobs", "list", "--json"))["jobs"][0]
    assert (job["kind"], job["state"], job["result"]["label"]) == ("snapshot", "succeeded", "as a job")
    assert "succeeded" in succeed(served, "jobs", "show", job["id"])
    assert json.loads(succeed(served, "jobs", "cancel", job["id"], "--json"))["state"] == "succeeded"
    assert run_command(served, "jobs", "show", "none").returncode == 1
    assert "writes are held back until" in succeed(served, "quiesce", "--ttl-s", "60")
    status = ("status", "--json", "--url", served.url, "--token", ADMIN_TOKEN)
    assert json.loads(succeed(served, *status, PORT=str(free_port())))["gate"]["state"] == "closed"
    assert succeed(served, "resume") == "writes go on\n"
    assert json.loads(succeed(served, "resume", "--json")) == {"state": "open", "was_quiesced": False}


def test_some_commands_work_on_a_store_without_a_gateway(served: Gateway, tmp_path: Path) -> None:
    """list, show, verify, export and restore need nothing but the store."""
    store = ("--store", f"file://{served.store_dir}")
    dead = {"PORT": str(free_port())}
    snapshots = json.loads(run_command(served, "list", *store, "--json", **dead).stdout)["snapshots"]
    assert snapshots
    assert json.loads(run_command(served, "show", *store, "--json", **dead).stdout)["id"] == snapshots[0]["id"]
    verified = run_command(served, "verify", "--level", "boot", *store, "--json", "--scratch", str(tmp_path), **dead)
    assert json.loads(verified.stdout)["ok"], verified.stderr
    assert run_command(served, "export", "alone.tar", *store, "--scratch", str(tmp_path), **dead).returncode == 0
    assert tarfile.is_tarfile(served.directory / "alone.tar")
    assert list(tmp_path.iterdir()) == []
    target = tmp_path / "restored"
    done = run_command(served, "restore", "latest", *store, "--data-dir", str(target), "--json", **dead)
    assert done.returncode == 0, done.stderr
    with bare_chroma(target) as chroma:
        assert chroma.client().get_collection("notes", embedding_function=None).count() == 300
    again = run_command(served, "restore", "latest", *store, "--data-dir", str(target), **dead)
    assert again.returncode == 2
    assert "holds data already" in again.stderr


def test_exit_codes_say_what_failed(served: Gateway, tmp_path: Path) -> None:
    """1 where no gateway answers, 2 for usage, 3 for the store, 4 for nothing to restore."""
    nobody = run_process(served, "list", PORT=str(free_port()))
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("error: no gateway answers")
    assert "\ntry: " in nobody.stderr
    assert run_command(served, "list", GATEWAY_ADMIN_TOKEN="another-token").returncode == 2
    assert run_command(served, "restore", "20200101T000000Z-000000").returncode == 4
    assert run_command(served, "show", "20200101T000000Z-000000").returncode == 4
    assert run_command(served, "verify", "--level", "none").returncode == 2
    empty = ("--store", f"file://{tmp_path}/empty", "--data-dir", str(tmp_path / "data"))
    assert run_command(served, "restore", "latest", *empty).returncode == 4
    assert not (tmp_path / "data").exists()
    unreachable = run_command(
        served,
        *("list", "--store", "s3://bucket"),
        AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="x",
    )
    assert unreachable.returncode == 3, unreachable.stderr


def test_jobs_are_begun_watched_and_remembered(served: Gateway) -> None:
    """`wait=false` answers 202 with a Location. The last event has the job's end; the result is the snapshot."""
    begun = served.admin("POST", "/snapshot?wait=false", json={"label": "job"})
    assert begun.status_code == 202, begun.text
    job = begun.json()
    assert begun.headers["Location"] == f"/admin/jobs/{job['id']}"
    events = served.admin("GET", f"/jobs/{job['id']}/events")
    assert events.headers["Content-Type"].startswith("text/event-stream")
    last = json.loads(events.text.strip().split("\n\n")[-1].split("data: ")[1])
    assert (last["state"], last["exit_code"]) == ("succeeded", 0)
    assert last["result"]["label"] == "job"
    assert served.admin("GET", f"/jobs/{job['id']}").json() == last
    assert last in served.admin("GET", "/jobs").json()["jobs"]
    assert served.admin("GET", "/jobs/none").status_code == 404


def wait_for_child(pid: int) -> int:
    """Wait until the process `pid` has a child that runs its own program, and return that one's id.

    A child that is stopped before it runs its program stops its parent too: the parent lends it its memory (vfork).
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() != Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.002)
    raise AssertionError("it has no child")


def test_a_cancelled_job_leaves_nothing_behind_and_a_second_one_is_refused(served: Gateway) -> None:
    """While a snapshot is verified, a second verification and every deletion are refused; snapshots go on.

    Once the job is cancelled its scratch directory is gone, and the next job may begin.
    """
    job = served.admin("POST", "/snapshot/latest/verify?wait=false", json={"level": "boot"}).json()
    second = wait_for_child(served.pid("gateway") or 0)
    os.kill(second, signal.SIGSTOP)  # the verification waits for its Chroma
    assert served.admin("POST", "/snapshot/latest/verify?wait=false").status_code == 409
    assert served.admin("DELETE", "/snapshot/latest").status_code == 409
    assert served.admin("POST", "/gc").status_code == 409
    assert served.admin("POST", "/snapshot").status_code == 201
    os.kill(second, signal.SIGCONT)
    cancelled = served.admin("DELETE", f"/jobs/{job['id']}").json()
    assert cancelled["state"] == "cancelled"
    assert scratch_of(served) == []
    assert served.admin("POST", "/snapshot").status_code == 201


def test_a_client_that_hangs_up_while_it_waits_stops_nothing(served: Gateway) -> None:
    """The verification goes on and succeeds."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    url = f"{served.url}/admin/snapshot/latest/verify"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"level": "boot"}, headers=headers, timeout=0.05)
    job = served.admin("GET", "/jobs").json()["jobs"][0]
    assert job["kind"] == "verify"
    served.admin("GET", f"/jobs/{job['id']}/events")
    assert served.admin("GET", f"/jobs/{job['id']}").json()["result"]["ok"]


def test_a_client_that_leaves_in_the_middle_of_an_archive_leaves_no_scratch_directory(served: Gateway) -> None:
    """The copy that was restored for the archive is removed."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    url = f"{served.url}/admin/snapshot/latest/archive"
    with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        assert int(answer.headers["Content-Length"]) > 100_000
        next(answer.iter_raw())
    served.until(lambda: scratch_of(served) == [], "the scratch directory is gone")
    whole = served.admin("GET", "/snapshot/latest/archive")
    assert len(whole.content) == int(whole.headers["Content-Length"])
    served.until(lambda: scratch_of(served) == [], "the scratch directory is gone")


def test_an_upload_may_be_longer_than_other_bodies_and_is_refused_as_400(served: Gateway) -> None:
    """A body that is not a tar makes no snapshot; other routes keep their limit."""
    before = served.admin("GET", "/snapshot").json()
    refused = served.admin("POST", "/snapshot/upload", content=os.urandom(1 << 20))
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidArgumentError"), refused.text
    assert served.admin("POST", "/snapshot", content=bytes(1 << 20)).status_code == 413
    assert served.admin("POST", "/snapshot/upload", token=None, content=b"x").status_code == 401
    assert served.admin("GET", "/snapshot").json() == before
    assert scratch_of(served) == []
