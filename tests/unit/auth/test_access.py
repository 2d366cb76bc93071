"""What a scope allows: `gateway.auth.access`."""

from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.access import ROUTE_NOT_FOUND, plan_access
from gateway.auth.scope import Names, Role, Scope
from gateway.chroma.routes import Action, Resource, match_route, parse_collection_id
from gateway.errors import Forbidden
from tests.chroma_routes import OPENAPI_ROUTES, filled

SCOPE = Scope(Names.of(["acme"]), Names.of(["web"]), Names.of(["pages-*"]))
names = some.text(some.characters(codec="utf-8"), min_size=1, max_size=20)


@given(some.sampled_from(OPENAPI_ROUTES), names, names, names)
def test_a_request_out_of_scope_is_never_just_passed_on(
    route: tuple[str, str], tenant: str, database: str, collection: str
) -> None:
    """Whatever the names: what is out of scope is answered by the gateway, checked or filtered."""
    method, template = route
    match = match_route(method, filled(template, tenant, database, collection))
    if "{" not in template:
        return
    in_scope = tenant == "acme" and ("{database}" not in template or database == "web")
    try:
        found = plan_access(SCOPE, Role.WRITER, match)
    except Forbidden:
        assert in_scope or match.action in (Action.CREATE_TENANT, Action.RESET)
        return
    if not in_scope:
        assert found.response is not None
    if match.resource is Resource.COLLECTION_ID:
        assert found.response is not None or found.collection_id == parse_collection_id(collection)
    if match.action in (Action.GET_COLLECTION, Action.DELETE_COLLECTION) and not collection.startswith("pages-"):
        assert found.response is not None
    if match.action in (Action.LIST_COLLECTIONS, Action.COUNT_COLLECTIONS, Action.LIST_DATABASES) and in_scope:
        assert found.filtered is not None


def test_a_fragment_does_not_bring_a_name_into_scope() -> None:
    """Chroma drops what follows a `#`, so it must not count as a part of the name."""
    path = b"/api/v2/tenants/acme/databases/web/collections/secret#pages-1"
    assert match_route("GET", path).action is Action.UNKNOWN
    assert plan_access(SCOPE, Role.READER, match_route("GET", path)).response is ROUTE_NOT_FOUND
