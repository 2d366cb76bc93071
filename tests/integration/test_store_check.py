"""`chroma-gateway store check` on real stores: what it finds, how it ends, and that it leaves nothing behind."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from gateway.cli.store_check import StoreCheck
from gateway.errors import StorageUnavailable
from gateway.storage import FileStorage
from tests import servers
from tests.commands import run_command
from tests.gateway_process import Gateway
from tests.store_faults import FaultProxy, Rule

BUCKET = "checked"
# Of a gateway, by method and query: pages of lists, and uploads in parts.
QUERIES = ("continuation-token", "?delete", "list-type", "partNumber", "uploadId", "uploads")
REQUESTS = {
    *(("GET", ""), ("GET", "list-type"), ("GET", "continuation-token"), ("HEAD", "")),
    *(("PUT", ""), ("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId")),
    *(("DELETE", ""), ("POST", "?delete"), ("DELETE", "uploadId")),
}
Check = Callable[..., "Checked"]


@dataclass
class Checked:
    status: int
    report: dict[str, Any]
    err: str

    def step(self, name: str) -> dict[str, Any]:
        return next(step for step in self.report["steps"] if step["name"] == name)

    @property
    def not_ok(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.report["steps"] if step["state"] != "ok"}


@pytest.fixture(scope="module")
def server(ministack: servers.S3Server) -> servers.S3Server:
    ministack.make_bucket(BUCKET)
    return ministack


@pytest.fixture
def proxy(server: servers.S3Server) -> Iterator[FaultProxy]:
    with servers.faults(server.port) as proxy:
        yield proxy


@pytest.fixture
def check(server: servers.S3Server, proxy: FaultProxy, tmp_path: Path) -> Check:
    """Run the command on a prefix of this test's own, behind the proxy."""
    env = server.env_behind(proxy) | {
        "GATEWAY_STORE": f"s3://{BUCKET}/{tmp_path.name}",
        "HOST": "0.0.0.0",  # as in the image; no key is needed to check a store
    }
    gateway = Gateway(tmp_path)

    def check(*options: str, **more: str) -> Checked:
        done = run_command(gateway, "store", "check", "--json", *options, **(env | more))
        assert done.stdout, done.stderr
        return Checked(done.returncode, json.loads(done.stdout), done.stderr)

    return check


def left(server: servers.S3Server, prefix: str) -> list[str]:
    """The keys that are in the bucket below `prefix`, without it."""
    client: Any = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=servers.ACCESS_KEY,
        aws_secret_access_key=servers.SECRET_KEY,
        region_name=servers.REGION,
    )
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", ())
    client.close()
    return [each["Key"].removeprefix(f"{prefix}/users/default/vectorstore/") for each in found]


def test_a_good_store_is_told_so(server: servers.S3Server, proxy: FaultProxy, check: Check, tmp_path: Path) -> None:
    """Everything that S3Storage asks for is tried, and is allowed, atomic and timed. Nothing stays."""
    checked = check()
    asked = {(method, next((word for word in QUERIES if word in target), "")) for method, target in proxy.requests}
    assert asked == REQUESTS
    assert (checked.status, checked.report["ok"], checked.not_ok) == (0, True, {})
    assert checked.report["conditional_writes"] == "kept"
    assert all(step["ms"] > 0 for step in checked.report["steps"])
    assert checked.step("upload in parts")["mb_per_s"] > 0
    assert checked.step("download")["mb_per_s"] > 0
    assert checked.step("delete")["actions"] == ["s3:DeleteObject"]
    actions = {action for grant in checked.report["grant"] for action in grant["actions"]}
    assert actions == {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"}
    assert f"arn:aws:s3:::{BUCKET}/{tmp_path.name}/users/default/*" in [
        grant["resource"] for grant in checked.report["grant"]
    ]
    assert checked.report["left_behind"] == left(server, tmp_path.name) == []


def test_a_store_that_denies_deletion_is_not_filled(
    server: servers.S3Server, proxy: FaultProxy, check: Check, tmp_path: Path
) -> None:
    """Status 3, the setting that helps, and the same objects after the second check as after the first."""
    proxy.rules = [Rule("status", method="DELETE", status=403)]
    first = check()
    assert (first.status, first.not_ok) == (3, {"delete": "denied", "abort an upload": "denied"})
    assert "GATEWAY_STORE_NEVER_DELETE=true" in first.step("delete")["hint"]
    stays = left(server, tmp_path.name)
    assert first.report["left_behind"] == stays
    second = check(GATEWAY_STORE_NEVER_DELETE="true")
    assert (second.status, second.not_ok) == (0, {"delete": "skipped", "abort an upload": "denied"})
    assert left(server, tmp_path.name) == stays
    assert all("s3:DeleteObject" not in grant["actions"] for grant in second.report["grant"])


def test_a_store_that_denies_writes_is_unusable(
    server: servers.S3Server, proxy: FaultProxy, check: Check, tmp_path: Path
) -> None:
    """What reading needs is tried all the same."""
    proxy.rules = [Rule("status", method="PUT", status=403)]
    checked = check()
    assert (checked.status, checked.not_ok) == (3, {"put": "denied"})
    assert {step["name"] for step in checked.report["steps"]} == {"put", "list", "get what is missing"}
    assert checked.report["left_behind"] == left(server, tmp_path.name) == []


@pytest.mark.parametrize(
    ("rule", "denied"),
    [
        (Rule("status", method="GET", contains="list-type", status=403), "list, page by page"),
        (Rule("status", method="POST", contains="uploads", status=403), "upload in parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_thing_that_is_denied_is_found(
    server: servers.S3Server, proxy: FaultProxy, check: Check, tmp_path: Path, rule: Rule, denied: str
) -> None:
    """The rest is tried, and tidied up although something failed."""
    proxy.rules = [rule]
    checked = check()
    assert (checked.status, checked.not_ok[denied]) == (3, "denied")
    assert checked.step("get")["state"] == "ok"
    assert checked.report["left_behind"] == left(server, tmp_path.name) == []


class KeepsWhatIsDeleted(FileStorage):
    """A server that takes a request to delete many objects, and deletes all but one of them."""

    async def delete_all(self, keys: Sequence[str]) -> None:
        await super().delete_all(keys[1:])


async def test_a_store_that_deletes_not_all_of_many_is_found(tmp_path: Path) -> None:
    """Garbage collection would count on it."""
    store = KeepsWhatIsDeleted(tmp_path)
    report = await StoreCheck(store, may_delete=True, on_step=lambda _: None).run()
    assert [(step.name, step.state) for step in report.steps if step.state != "ok"] == [("delete many", "wrong")]
    assert [info.key async for info in store.list("")] == []


class Unreachable(FileStorage):
    """A server that is down."""

    async def put(self, key: str, data: bytes) -> None:
        raise StorageUnavailable(f"put {key}: connection refused", "check AWS_ENDPOINT_URL_S3")


async def test_a_store_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    """Every further step would wait as long as the first."""
    report = await StoreCheck(Unreachable(tmp_path), may_delete=True, on_step=lambda _: None).run()
    assert [(step.name, step.state, step.hint) for step in report.steps] == [
        ("put", "unreachable", "check AWS_ENDPOINT_URL_S3")
    ]
    assert not report.is_usable


def test_conditions_that_are_ignored_are_said(check: Check, tmp_path: Path) -> None:
    """One gateway can use the store, unless GATEWAY_REQUIRE_FENCING is set; then the status is that of a start."""
    with servers.rclone() as server:
        server.make_bucket(BUCKET)
        checked = check(**server.env)
        assert (checked.status, checked.report["conditional_writes"]) == (0, "broken")
        assert {"put if absent", "put if unchanged", "writers at once"} <= set(checked.not_ok)
        assert check(**server.env, GATEWAY_REQUIRE_FENCING="true").status == 2


def test_a_directory_is_checked_too(tmp_path: Path) -> None:
    """Named by an option, with a table for people."""
    url = f"file://{tmp_path}/store"
    done = run_command(Gateway(tmp_path), "store", "check", "--store", url, "--user-id", "ada")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{url}/users/ada/vectorstore/"
    assert any(line.startswith("upload in parts") and "MB/s" in line for line in lines)
    assert "conditional writes are atomic: two gateways are fenced" in lines
    assert f"  read, write on {tmp_path}/store" in done.stdout
    assert lines[-1] == "a gateway can use this store"
    assert [path for path in (tmp_path / "store/users").rglob("*") if path.is_file()] == []


async def test_checks_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each has objects of its own."""
    store = FileStorage(tmp_path)
    checks = [StoreCheck(store, may_delete=True, on_step=lambda _: None).run() for _ in range(2)]
    for report in await asyncio.gather(*checks):
        assert [(step.name, step.problem) for step in report.steps if step.state != "ok"] == []
    assert [info.key async for info in store.list("")] == []


async def test_an_interrupted_check_is_tidied_up(tmp_path: Path) -> None:
    """Ctrl-C in the midst of it."""
    store, reached = FileStorage(tmp_path), asyncio.Event()

    def on_step(name: str) -> None:
        if name == "get a range":
            reached.set()

    running = asyncio.create_task(StoreCheck(store, may_delete=True, on_step=on_step).run())
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [info.key async for info in store.list("")] == []
