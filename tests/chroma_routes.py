"""The routes of Chroma's OpenAPI document, and the table of them that the documentation shows."""

import re
from pathlib import Path
from urllib.parse import quote

from gateway.auth.access import require_role
from gateway.auth.scope import Role
from gateway.chroma.routes import ROUTES, Action, Kind, Route
from gateway.errors import Forbidden

OPENAPI_ROUTES: list[tuple[str, str]] = [
    (line.split()[0], line.split()[1])
    for line in (Path(__file__).parent / "routes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
"""Method and path template."""

_AT_THE_GATE = {
    Kind.READ: "passes",
    Kind.RECORD_READ: "the first one of a collection waits",
    Kind.WRITE: "waits",
}


def without_names(template: str) -> str:
    """`/a/{b}` as `/a/{}`: OpenAPI and the gateway give the placeholders other names."""
    return re.sub(r"{\w+}", "{}", template)


def filled(template: str, tenant: str, database: str, collection: str) -> bytes:
    """An OpenAPI template with these names in it, escaped."""
    values = {
        **dict.fromkeys(("{tenant}", "{tenant_name}"), tenant),
        "{database}": database,
        **dict.fromkeys(("{collection_id}", "{crn}"), collection),
        **dict.fromkeys(("{name}", "{function_name}"), "some"),
    }
    for placeholder, value in values.items():
        template = template.replace(placeholder, quote(value, safe=""))
    return template.encode()


def role_for(action: Action) -> str:
    """The least role that may do it: `reader`, `writer` or `admin`."""
    for role in Role:
        try:
            require_role(role, action)
        except Forbidden:
            continue
        return role.name.lower()
    raise AssertionError(action)


def markdown_row(route: Route) -> str:
    """The row of a table in the documentation: route, its label in metrics, role, and what a closed gate does."""
    return (
        f"| `{route.method} {route.path}` | `{route.action.value}` | {role_for(route.action)} "
        f"| {_AT_THE_GATE[route.kind]} |"
    )


MARKDOWN_TABLE = "\n".join(
    [
        "| route | `route` in metrics | role | while the gate is closed |",
        "| --- | --- | --- | --- |",
        *map(markdown_row, ROUTES),
    ]
)
"""The whole table: a page that shows it must contain this text."""
