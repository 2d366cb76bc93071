"""README says what there is, and nothing else."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from gateway import errors
from gateway.config import Settings
from gateway.server.container import Gateway
from tests.unit.api.test_health import no_lifespan

README = (Path(__file__).parents[2] / "README.md").read_text()
ROUTE = re.compile(r"^\| `(GET|POST|PUT|PATCH|DELETE) (/[^ `?]*)", re.MULTILINE)


@pytest.fixture
async def admin(tmp_path: Path) -> FastAPI:
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store")
    return Gateway(settings, "a-token").admin(no_lifespan)


async def test_every_route_is_in_the_readme(admin: FastAPI) -> None:
    """The table of routes is the application's, no more and no less."""
    served = {
        (method.upper(), path.replace("{snapshot_id}", "{id}"))
        for path, methods in admin.openapi()["paths"].items()
        for method in methods
    }
    assert set(ROUTE.findall(README)) == served


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


def test_every_exit_code_is_in_the_readme() -> None:
    """The line of exit codes has all that our errors end with."""
    line = next(part for part in README.split("\n\n") if part.startswith("**Exit codes**"))
    codes = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    for code in codes:
        assert re.search(rf"\b{code} [a-z]", line), code


@pytest.mark.parametrize("name", re.findall(r"`(scripts/[a-z-]+)`|^(?:\./)(scripts/[a-z-]+)", README, re.MULTILINE))
def test_every_script_it_names_is_there(name: tuple[str, str]) -> None:
    """No command of the README is missing."""
    assert (Path(__file__).parents[2] / (name[0] or name[1])).is_file()
