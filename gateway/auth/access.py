"""May this role, in this scope, do that? And if not, what is the response? Pure.

The role is checked first. If it is not enough, the response is 403, whatever the request addresses. One request is
made smaller instead: a reader's `get_or_create` only gets, since LangChain and LlamaIndex begin with one. A route that
is not in the table gets Chroma's 404, unless an admin asks.

Then the scope. What is out of scope gets the response that Chroma gives for what does not exist, byte for byte. The
route alone decides it, without asking Chroma, so a client cannot find out whether something exists out of its scope.
Where even that would say too much (creating a collection whose name is out of scope), the response is 403 and says what
the key may do.
"""

import json
from enum import Enum
from typing import Any, NamedTuple

from gateway.auth.scope import Names, Role, Scope
from gateway.chroma.routes import READS, Action, Resource, RouteMatch, parse_collection_id
from gateway.errors import Forbidden, GatewayError, InvalidRequest


class StaticResponse(NamedTuple):
    """A response that the gateway sends in place of Chroma's."""

    status: int
    body: bytes


class FilteredList(Enum):
    """A list of which a key may see a part."""

    COLLECTIONS = "collections"
    DATABASES = "databases"
    COUNT = "count"


class AccessPlan(NamedTuple):
    """What is left to do for a request whose role is enough. All defaults: nothing."""

    response: StaticResponse | None = None
    """Send this instead of asking Chroma."""
    filtered: FilteredList | None = None
    """Ask Chroma for the whole list, and show what `visible` contains."""
    visible: Names = Names()
    collection_id: str | None = None
    """The name of this collection must be in scope, both when the request arrives and when Chroma gets it."""
    not_found: StaticResponse | None = None
    """The response if it is not."""
    name_field: str | None = None
    """This field of the body must be one of `allowed_names`."""
    allowed_names: Names = Names()
    name_is_optional: bool = False
    get_only: bool = False
    """Ask Chroma for the collection that the body would get or create."""


UNRESTRICTED = AccessPlan()
_UNSCOPED = (Action.PROBE, Action.PREFLIGHT_CHECKS, Action.IDENTITY, Action.RETIRED)


def require_role(role: Role, action: Action) -> None:
    """Raise Forbidden if `role` is not enough for `action`."""
    needed = Role.READER if action in READS else Role.WRITER
    if action is Action.RESET:
        needed = Role.ADMIN
    if role < needed:
        raise Forbidden(
            f"this key is a {role.name.lower()}'s, and this wants {'an' if needed is Role.ADMIN else 'a'} "
            f"{needed.name.lower()}'s",
            "ask the operator of this gateway for a key with that role",
        )


def plan_access(scope: Scope, role: Role, route: RouteMatch) -> AccessPlan:
    """How to handle a request. Raises Forbidden."""
    if route.action is Action.UNKNOWN:
        # What it does in a newer Chroma is not known.
        return UNRESTRICTED if role is Role.ADMIN and scope.everything else AccessPlan(ROUTE_NOT_FOUND)
    if route.action is Action.CREATE_COLLECTION and role is Role.READER:
        return _plan_in_scope(scope, route)._replace(get_only=True)
    require_role(role, route.action)
    return _plan_in_scope(scope, route)


def _plan_in_scope(scope: Scope, route: RouteMatch) -> AccessPlan:
    if scope.everything or route.action in _UNSCOPED:
        return UNRESTRICTED
    if route.action is Action.CREATE_TENANT:
        if not scope.whole_tenants:
            raise _partial_scope("tenant")
        return AccessPlan(name_field="name", allowed_names=scope.tenants)
    match route.resource:
        case Resource.COLLECTION_ID:
            return _plan_by_id(scope, route)
        case Resource.COLLECTION:
            if scope.sees(route.tenant, route.database, route.collection):
                return UNRESTRICTED
            return AccessPlan(not_found(f"Collection [{route.collection}] does not exist"))
        case Resource.DATABASE:
            return _plan_in_database(scope, route)
        case Resource.TENANT:
            return _plan_in_tenant(scope, route)
        case Resource.CRN:
            # The name in it may be one of another tenant. Only Chroma could tell.
            return AccessPlan(not_found(f"Collection [{route.collection}] does not exist"))
        case Resource.NONE:
            return AccessPlan(ROUTE_NOT_FOUND)


# The field of the body that gives a collection a name.
_NAME_FIELDS = {
    Action.UPDATE_COLLECTION: "new_name",
    Action.FORK: "new_name",
    Action.ATTACH_FUNCTION: "output_collection",
}


def _plan_by_id(scope: Scope, route: RouteMatch) -> AccessPlan:
    id_ = parse_collection_id(route.collection)
    # Chroma writes this message in two places, with and without a full stop.
    stop = "" if route.action is Action.GET_COLLECTION_BY_ID else "."
    absent = not_found(f"Collection [{id_ or route.collection}] does not exist{stop}")
    if route.action is Action.GET_FUNCTION:
        absent = not_found("Attached function not found")
    if id_ is None or not scope.sees_database(route.tenant, route.database):
        return AccessPlan(absent)
    if scope.collections.everything or route.action not in _NAME_FIELDS:
        return AccessPlan(collection_id=id_, not_found=absent)
    return AccessPlan(
        collection_id=id_,
        not_found=absent,
        name_field=_NAME_FIELDS[route.action],
        allowed_names=scope.collections,
        name_is_optional=route.action is Action.UPDATE_COLLECTION,
    )


def _plan_in_database(scope: Scope, route: RouteMatch) -> AccessPlan:
    action, seen = route.action, scope.sees_database(route.tenant, route.database)
    names = scope.collections
    if action is Action.LIST_COLLECTIONS:
        if not seen:
            return AccessPlan(StaticResponse(200, b"[]"))
        return UNRESTRICTED if names.everything else AccessPlan(filtered=FilteredList.COLLECTIONS, visible=names)
    if action is Action.COUNT_COLLECTIONS:
        if not seen:
            return AccessPlan(StaticResponse(200, b"0"))
        return UNRESTRICTED if names.everything else AccessPlan(filtered=FilteredList.COUNT, visible=names)
    if action is Action.CREATE_COLLECTION:
        if not seen:
            return AccessPlan(chroma_error(400, "InvalidArgumentError", f"Database [{route.database}] does not exist"))
        return UNRESTRICTED if names.everything else AccessPlan(name_field="name", allowed_names=names)
    if action is Action.GET_DATABASE:
        if not seen:
            return AccessPlan(not_found(f"Database [{route.database}] not found. Are you sure it exists?"))
        return UNRESTRICTED
    if not seen:
        return AccessPlan(not_found(f"Database [{route.database}] not found"))
    if not names.everything:
        raise _partial_scope("database")
    return UNRESTRICTED


def _plan_in_tenant(scope: Scope, route: RouteMatch) -> AccessPlan:
    action, databases = route.action, scope.databases
    if route.tenant not in scope.tenants:
        if action is Action.LIST_DATABASES:
            return AccessPlan(StaticResponse(200, b"[]"))
        return AccessPlan(not_found(f"Tenant [{route.tenant}] not found"))
    if action is Action.GET_TENANT:
        return UNRESTRICTED
    if action is Action.LIST_DATABASES:
        return UNRESTRICTED if databases.everything else AccessPlan(filtered=FilteredList.DATABASES, visible=databases)
    if action is Action.CREATE_DATABASE:
        if not scope.collections.everything:
            raise _partial_scope("database")
        return UNRESTRICTED if databases.everything else AccessPlan(name_field="name", allowed_names=databases)
    if not scope.whole_tenants:
        raise _partial_scope("tenant")
    return UNRESTRICTED


def _partial_scope(what: str) -> GatewayError:
    return Forbidden(f"this key sees only a part of a {what}, and may neither create nor change one")


def require_name(plan: AccessPlan, body: bytes) -> None:
    """Raise Forbidden unless `plan.name_field` of `body`, which must be complete, is an allowed name."""
    value = _fields(body)
    if value is None:
        raise Forbidden("this key may use only certain names, and the body cannot be read")
    name = value.get(plan.name_field or "")
    if name is None and plan.name_is_optional:
        return
    if name not in plan.allowed_names or not isinstance(name, str):
        raise Forbidden(
            f"this key may not use this value as {plan.name_field!r}",
            f"it may use {', '.join(plan.allowed_names.patterns or ())}",
        )


def name_to_get(body: bytes) -> str:
    """The name of the collection that `body`, which must be complete, would get or create. Raises Forbidden."""
    value = _fields(body) or {}
    name = value.get("name")
    if value.get("get_or_create") is not True or not isinstance(name, str):
        raise Forbidden(
            "this key is a reader's, and may get a collection but not create one",
            "ask the operator of this gateway for a writer's key",
        )
    if not name or not name.isprintable():
        raise InvalidRequest("this is no name of a collection")
    return name


def _fields(body: bytes) -> dict[str, Any] | None:
    """A body's JSON object, None if it is not one."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Chroma may take the other one of two fields with the same name.
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("duplicate field")
    return dict(pairs)


def identity_response(name: str, scope: Scope) -> StaticResponse:
    """The response of `/api/v2/auth/identity` for a key, in the shape that chromadb's clients read.

    If it names a single tenant or database, a client can use that as its default. `*` stands for more than one.
    """

    def are_literal(names: Names) -> bool:
        return names.patterns is not None and not any(mark in each for each in names.patterns for mark in "*?")

    tenants, databases = scope.tenants, scope.databases
    tenant = tenants.patterns[0] if are_literal(tenants) and tenants.patterns and len(tenants.patterns) == 1 else "*"
    listed = list(databases.patterns or ()) if are_literal(databases) else ["*"]
    body = json.dumps({"user_id": name, "tenant": tenant, "databases": listed}, separators=(",", ":"))
    return StaticResponse(200, body.encode())


def chroma_error(status: int, name: str, message: str) -> StaticResponse:
    """An error as Chroma writes it (`rust/frontend/src/types/errors.rs`)."""
    body = json.dumps({"error": name, "message": message}, separators=(",", ":"), ensure_ascii=False)
    return StaticResponse(status, body.encode("utf-8", "replace"))


def not_found(message: str) -> StaticResponse:
    """A 404 as Chroma writes it."""
    return chroma_error(404, "NotFoundError", message)


ROUTE_NOT_FOUND = StaticResponse(404, b"")
"""Chroma's response for a route that it does not have."""
