"""The documentation says what there is, and nothing else."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from fastapi import FastAPI

from gateway import errors
from gateway.cli.main import application
from gateway.config import Settings, variable_of
from gateway.documents.readers.kinds import suffixes
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from gateway.vectorstore import Phase
from tests.documentation import DOCS, PAGES, ROOT, anchors, blocks, name_of, prose, rows

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.fixture
async def built(tmp_path: Path) -> Gateway:
    (tmp_path / "data").mkdir()
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store")
    return Gateway(settings, "a-token")


@pytest.fixture
async def admin(built: Gateway) -> FastAPI:
    return routes_of(built)


# ---------------------------------------------------------------------- pages


def test_the_readme_stays_short() -> None:
    """At most 150 lines; everything else is a page of its own."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", sorted((DOCS / "start").iterdir()), ids=name_of)
def test_a_page_to_start_from_stays_short(page: Path) -> None:
    """At most two screens of 45 lines."""
    assert len(page.read_text().splitlines()) <= 90


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files that are linked exist, and have the heading that the link names."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links every page of docs."""
    linked = {(DOCS / path).resolve() for path in re.findall(r"\]\(([^)#\s]+)", (DOCS / "README.md").read_text())}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - {DOCS / "README.md"} <= linked


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Paths in the text and scripts in the commands are those of the repository."""
    text = page.read_text()
    named = set(re.findall(r"`((?:gateway|tests|scripts|docs|\.github)/[\w./-]*)", prose(page)))
    named |= set(re.findall(r"(?<![\w/.-])(?:\./)?(scripts/[a-z-]+)", text))
    assert not [path for path in named if not (ROOT / path).exists()]


@every_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    """No page tells of a variable that would stop the start."""
    known = {variable_of(field) for field in Settings.model_fields}
    named = {name for name in re.findall(r"\bGATEWAY_[A-Z0-9_]+", page.read_text()) if not name.endswith("_")}
    assert named <= known


# ---------------------------------------------------------------------- the admin API


async def test_every_route_is_in_the_table(admin: FastAPI) -> None:
    """docs/admin-api.md has the application's routes, no more and no less."""
    served = {
        (method.upper(), path.replace("{snapshot_id}", "{id}"))
        for path, methods in admin.openapi()["paths"].items()
        for method in methods
    }
    documented = re.findall(
        r"^\| `(GET|POST|PUT|PATCH|DELETE) (/[^ `?]*)", (DOCS / "admin-api.md").read_text(), re.MULTILINE
    )
    assert set(documented) == served
    assert len(documented) == len(served)


async def test_every_field_and_route_is_explained(admin: FastAPI) -> None:
    """The OpenAPI page has a summary for each route and a description for each field of each model."""
    api = admin.openapi()
    assert all("summary" in operation for methods in api["paths"].values() for operation in methods.values())
    bare = [
        f"{name}.{field}"
        for name, model in api["components"]["schemas"].items()
        for field, schema in model.get("properties", {}).items()
        if "description" not in schema and "$ref" not in schema
    ]
    assert not bare


def is_map(schema: dict[str, Any]) -> bool:
    """Whether it is of objects with any names, or may be."""
    return any(each.get("additionalProperties") for each in (schema, *schema.get("anyOf", [])))


async def test_every_body_has_a_schema(admin: FastAPI) -> None:
    """What a route takes and answers is described. Swagger UI would show an empty box else, or `additionalProp1`."""
    bare = []
    for path, methods in admin.openapi()["paths"].items():
        for method, operation in methods.items():
            bodies = {status: each for status, each in operation["responses"].items() if status not in ("204", "304")}
            bodies |= {"body": operation["requestBody"]} if "requestBody" in operation else {}
            for which, body in bodies.items():
                schemas = [each.get("schema", {}) for each in body.get("content", {}).values()]
                if not schemas or any(is_map(each) or not each.keys() & {"$ref", "anyOf", "type"} for each in schemas):
                    bare.append(f"{method} {path}: {which}")
    assert not bare


async def test_every_map_has_an_example(admin: FastAPI) -> None:
    """Swagger UI invents the names `additionalProp1` to 3 for objects that may have any."""
    bare = [
        f"{name}.{field}"
        for name, model in admin.openapi()["components"]["schemas"].items()
        for field, schema in model.get("properties", {}).items()
        if is_map(schema) and not schema.get("examples")
    ]
    assert not bare


# ---------------------------------------------------------------------- the commands


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that people see, by its words."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield path, command
        return
    for name, each in subcommands.items():
        if not each.hidden:
            yield from commands(each, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(application())))


def options_of(command: click.Command) -> set[str]:
    parameters = [each for each in command.params if each.param_type_name == "option"]
    return {name for each in parameters for name in (*each.opts, *each.secondary_opts)} - {"--help"}


def arguments_of(command: click.Command) -> list[str]:
    parameters = [each for each in command.params if each.param_type_name == "argument"]
    return [str(each.name).upper() if each.required else f"[{str(each.name).upper()}]" for each in parameters]


def test_every_command_and_option_is_in_the_table() -> None:
    """docs/cli.md has the commands with their arguments and options, no more and no less."""
    documented = {}
    for cells in rows(DOCS / "cli.md"):
        if match := re.fullmatch(r"`chroma-gateway ([^`]+)`", cells[0]):
            words = match[1].split()
            names = tuple(word for word in words if word.islower())
            documented[names] = (
                [word for word in words if not word.islower()],
                set(re.findall(r"`(--[a-z-]+)`", cells[1])),
            )
    assert documented == {names: (arguments_of(command), options_of(command)) for names, command in COMMANDS.items()}


@every_page
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Commands in fenced blocks have the words and options of docs/cli.md."""
    for _, text in blocks(page, "bash", "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:docker exec gateway |\.venv/bin/)?chroma-gateway (.*)", line.partition(" #")[0]):
                words = shlex.split(match[1])
                if words == ["--version"]:
                    continue
                named = next((names for names in COMMANDS if tuple(words[: len(names)]) == names), None)
                assert named, line
                assert {word for word in words if word.startswith("--")} <= options_of(COMMANDS[named]), line


def test_every_exit_code_is_in_the_table() -> None:
    """docs/cli.md has all that our errors end with."""
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    codes = {kind.exit_code for kind in kinds}  # type: ignore[attr-defined]  # every one has a code
    assert {int(cells[0]) for cells in rows(DOCS / "cli.md") if cells[0].isdigit()} == {0} | codes


# ---------------------------------------------------------------------- phases, metrics, messages


def test_every_phase_is_in_the_table() -> None:
    """docs/monitoring.md has the phases that `/readyz` tells while it is 503."""
    named = {cells[0].strip("`") for cells in rows(DOCS / "monitoring.md") if re.fullmatch("`[a-z-]+`", cells[0])}
    assert named == {phase.value for phase in Phase} - {Phase.READY.value}


async def test_every_metric_is_in_the_table(built: Gateway) -> None:
    """docs/monitoring.md has the metrics of a scrape, no more and no less."""
    await built.collector.render()
    scraped = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in built.metrics.registry.collect()
    }
    documented = [cells[0].strip("`") for cells in rows(DOCS / "monitoring.md") if "chroma_gateway_" in cells[0]]
    assert set(documented) == scraped
    assert len(documented) == len(scraped)


def test_every_file_type_is_in_the_table() -> None:
    """docs/training-documents.md has the endings of names that training reads, no more and no less."""
    page = DOCS / "training-documents.md"
    documented = [ending for cells in rows(page) for ending in re.findall(r"`(\.\w+)`", cells[1])]
    assert sorted(documented) == suffixes()


# What others say through us: botocore, S3 servers, Chroma.
OF_OTHERS = {
    "Could not connect to the endpoint",
    "Unable to locate credentials",
    "AccessDenied",
    "InvalidAccessKeyId",
    "length limit exceeded",
}


def test_every_message_in_troubleshooting_can_appear() -> None:
    """What stands in the first column is text of the code; `…` stands for what differs."""
    said = {
        node.value
        for file in (ROOT / "gateway").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    } | OF_OTHERS
    unknown = [
        piece
        for cells in rows(DOCS / "troubleshooting.md")
        for message in re.findall(r"`([^`]+)`", cells[0])
        for piece in message.split("…")
        if piece.strip(" :") and not any(piece.strip() in each for each in said)
    ]
    assert not unknown
