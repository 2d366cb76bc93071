"""`store check`: whether a gateway can use a store, and what to allow where it cannot."""

import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import AsJson
from gateway.cli.output import print_json, table
from gateway.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from gateway.cli.store_check import Report, Step
    from gateway.config import Settings
    from gateway.storage.protocol import Grant

store = typer.Typer(help="The store in which a gateway keeps snapshots and documents.")


@store.callback()
def _store() -> None:
    """Keep `check` a command of its own: a group of one command would become that command."""


@store.command("check")
def check_store(
    url: Annotated[
        str | None, typer.Option("--store", help="The store: s3://… or file:///…. Default: GATEWAY_STORE.")
    ] = None,
    user_id: Annotated[str | None, typer.Option(help="Whose part of it. Default: GATEWAY_USER_ID.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try everything that a gateway does on a store. Needs no gateway, and disturbs none.

    It sends about 25 MB to `check/` in the user's repository, and deletes that again. Exit status: 0 a gateway can use
    the store, 3 something that it needs is denied, wrong or cannot be reached, 2 GATEWAY_REQUIRE_FENCING is set and
    conditional writes do not hold.
    """
    # These load the SDK of the store.
    from rich.console import Console  # noqa: PLC0415

    from gateway.cli.store_check import PAGE_KEYS, StoreCheck  # noqa: PLC0415
    from gateway.cli.store_settings import store_settings  # noqa: PLC0415
    from gateway.storage import PrefixedStorage, open_storage, registry  # noqa: PLC0415

    settings = store_settings(url, user_id)
    may_delete = not settings.store_never_delete
    storage = PrefixedStorage(
        open_storage(settings.store, replace(settings.store_options, page_keys=PAGE_KEYS)), settings.repository_prefix
    )
    # The documents of the user are beside the repository.
    needed = registry.grants(
        settings.store, settings.store_options, f"users/{settings.user_id}/", may_delete=may_delete
    )

    async def check() -> "Report":
        try:
            return await StoreCheck(storage, may_delete=may_delete, on_step=status.update).run()
        finally:
            await storage.close()

    with Console(stderr=True).status("checking") as status:
        report = asyncio.run(check())
    if as_json:
        print_json(_document(storage.url, report, needed))
    else:
        for line in _lines(storage.url, report, needed):
            typer.echo(line)
    raise typer.Exit(_exit_code(settings, report))


def _exit_code(settings: "Settings", report: "Report") -> int:
    if not report.is_usable:
        return StorageError.exit_code
    conditions = report.conditional_writes
    is_fenced = conditions is not None and conditions.value == "kept"
    return ConfigError.exit_code if settings.require_fencing and not is_fenced else 0


def _document(url: str, report: "Report", needed: "list[Grant]") -> dict[str, Any]:
    return {
        "store": url,
        "ok": report.is_usable,
        "conditional_writes": report.conditional_writes.value if report.conditional_writes else None,
        "steps": [asdict(step) | {"actions": _actions(step, needed)} for step in report.steps],
        "grant": [{"resource": resource, "actions": actions} for resource, actions in _by_resource(needed).items()],
        "left_behind": report.left_behind,
    }


def _lines(url: str, report: "Report", needed: "list[Grant]") -> list[str]:
    lines = [url, ""]
    rows = [
        [
            step.name,
            step.state if step.needed or step.state == "ok" else f"{step.state} (optional)",
            f"{step.ms:.0f} ms" if step.ms is not None and step.state == "ok" else "",
            f"{step.mb_per_s:.1f} MB/s" if step.mb_per_s else "",
            ", ".join(_actions(step, needed)),
        ]
        for step in report.steps
    ]
    lines += table(rows, right={2, 3})
    for step in report.steps:
        if step.problem:
            lines += ["", f"{step.name}: {step.problem}", *([f"  try: {step.hint}"] if step.hint else [])]
    if report.conditional_writes:
        atomic = report.conditional_writes.value == "kept"
        lines += ["", f"conditional writes are {'atomic: two gateways are fenced' if atomic else 'not kept'}"]
    lines += ["", "grant:"]
    lines += [f"  {', '.join(actions)} on {resource}" for resource, actions in _by_resource(needed).items()]
    if report.left_behind:
        lines += ["", "left behind:", *(f"  {key}" for key in report.left_behind)]
    lines += ["", "a gateway can use this store" if report.is_usable else "a gateway cannot use this store"]
    return lines


def _actions(step: "Step", needed: "list[Grant]") -> list[str]:
    return sorted({grant.action for grant in needed if grant.operation == step.operation})


def _by_resource(needed: "list[Grant]") -> dict[str, list[str]]:
    return {
        resource: sorted({grant.action for grant in needed if grant.resource == resource})
        for resource in dict.fromkeys(grant.resource for grant in needed)
    }
