"""May this role, in this scope, do that? And if not, what is the answer? Pure.

The role is asked first, and answers 403 whatever is addressed. Then the scope: what is outside of it answers as
Chroma answers for what does not exist, byte for byte, by the route alone and without asking Chroma, so that there
is nothing to tell a hidden thing from one that never was. Where even that would say too much (making a collection
whose name is out of scope) the answer is 403 and says what the key may do.
"""

import json
from enum import Enum
from typing import Any, NamedTuple

from gateway.auth.routes import BY_ID, READS, Action, Addressed, collection_id
from gateway.auth.scope import Names, Role, Scope
from gateway.errors import Forbidden, GatewayError


class Answer(NamedTuple):
    """What is said in Chroma's place."""

    status: int
    body: bytes
    like_chroma: bool = True
    """Whether it goes with the headers of Chroma's own errors."""


class Lists(Enum):
    """What a filtered answer is a list of."""

    COLLECTIONS = "collections"
    DATABASES = "databases"
    COUNT = "count"


class AccessPlan(NamedTuple):
    """What is left to do for a request that is not refused out of hand: nothing, where all is empty."""

    answer: Answer | None = None
    """Say this instead of asking Chroma."""
    lists: Lists | None = None
    """Ask for all, and show what `visible` has."""
    visible: Names = Names()
    collection_id: str | None = None
    """This collection's name must be in scope, now and when Chroma is given the request."""
    absent: Answer | None = None
    """What to say where it is not."""
    name_field: str | None = None
    """This field of the body must be one of `names`."""
    names: Names = Names()
    optional_name: bool = False


GO_ON = AccessPlan()


def require_role(role: Role, action: Action) -> None:
    """Raise Forbidden if `role` is not enough for `action`."""
    needed = Role.READER if action in READS else Role.WRITER
    if action in (Action.UNKNOWN, Action.RESET):
        needed = Role.ADMIN
    if role < needed:
        raise Forbidden(
            f"this key is a {role.name.lower()}'s, and this wants {'an' if needed is Role.ADMIN else 'a'} "
            f"{needed.name.lower()}'s",
            "ask whoever runs this gateway for a key that may",
        )


def plan(scope: Scope, to: Addressed) -> AccessPlan:
    """How to carry out a request whose role is enough. Raises Forbidden."""
    action = to.action
    if scope.everything or action in (Action.PROBE, Action.PREFLIGHT_CHECKS, Action.IDENTITY):
        return GO_ON
    if action in BY_ID:
        return _by_id(scope, to)
    if action in (Action.GET_COLLECTION, Action.DELETE_COLLECTION):
        if scope.sees(to.tenant, to.database, to.collection):
            return GO_ON
        return AccessPlan(not_found(f"Collection [{to.collection}] does not exist"))
    if action in _OF_DATABASES:
        return _of_database(scope, to)
    if action in _OF_TENANTS:
        return _of_tenant(scope, to)
    # CRN: by a name of the tenant that is not the tenant's, which Chroma alone could tell. UNKNOWN: whatever it is.
    return AccessPlan(
        not_found(f"Collection [{to.collection}] does not exist") if action is Action.CRN else NOTHING_HERE
    )


_OF_DATABASES = (
    *(Action.LIST_COLLECTIONS, Action.COUNT_COLLECTIONS, Action.CREATE_COLLECTION, Action.GET_DATABASE),
    Action.DELETE_DATABASE,
)
_OF_TENANTS = (
    *(Action.GET_TENANT, Action.UPDATE_TENANT, Action.CREATE_TENANT, Action.LIST_DATABASES, Action.CREATE_DATABASE),
)


def _by_id(scope: Scope, to: Addressed) -> AccessPlan:
    id_ = collection_id(to.collection)
    # Two places of Chroma's code, with and without a full stop.
    stop = "" if to.action is Action.GET_COLLECTION_BY_ID else "."
    absent = not_found(f"Collection [{id_ or to.collection}] does not exist{stop}")
    if to.action is Action.GET_FUNCTION:
        absent = not_found("Attached function not found")
    if id_ is None or not scope.sees_database(to.tenant, to.database):
        return AccessPlan(absent)
    if scope.collections.everything or to.action not in _NAMING:
        return AccessPlan(collection_id=id_, absent=absent)
    return AccessPlan(
        collection_id=id_,
        absent=absent,
        name_field=_NAMING[to.action],
        names=scope.collections,
        optional_name=to.action is Action.UPDATE_COLLECTION,
    )


_NAMING = {
    Action.UPDATE_COLLECTION: "new_name",
    Action.FORK: "new_name",
    Action.ATTACH_FUNCTION: "output_collection",
}


def _of_database(scope: Scope, to: Addressed) -> AccessPlan:
    action, seen = to.action, scope.sees_database(to.tenant, to.database)
    if action is Action.LIST_COLLECTIONS:
        if not seen:
            return AccessPlan(Answer(200, b"[]"))
        return GO_ON if scope.collections.everything else AccessPlan(lists=Lists.COLLECTIONS, visible=scope.collections)
    if action is Action.COUNT_COLLECTIONS:
        if not seen:
            return AccessPlan(Answer(200, b"0"))
        return GO_ON if scope.collections.everything else AccessPlan(lists=Lists.COUNT, visible=scope.collections)
    if action is Action.CREATE_COLLECTION:
        if not seen:
            return AccessPlan(chroma_error(400, "InvalidArgumentError", f"Database [{to.database}] does not exist"))
        if scope.collections.everything:
            return GO_ON
        return AccessPlan(name_field="name", names=scope.collections)
    if action is Action.GET_DATABASE:
        if not seen:
            return AccessPlan(not_found(f"Database [{to.database}] not found. Are you sure it exists?"))
        return GO_ON
    if not seen:
        return AccessPlan(not_found(f"Database [{to.database}] not found"))
    if not scope.collections.everything:
        raise _partly("database")
    return GO_ON


def _of_tenant(scope: Scope, to: Addressed) -> AccessPlan:
    action = to.action
    if action is Action.CREATE_TENANT:
        if not scope.whole_tenants:
            raise _partly("tenant")
        return AccessPlan(name_field="name", names=scope.tenants)
    if to.tenant not in scope.tenants:
        if action is Action.LIST_DATABASES:
            return AccessPlan(Answer(200, b"[]"))
        return AccessPlan(not_found(f"Tenant [{to.tenant}] not found"))
    if action is Action.GET_TENANT:
        return GO_ON
    if action is Action.LIST_DATABASES:
        return GO_ON if scope.databases.everything else AccessPlan(lists=Lists.DATABASES, visible=scope.databases)
    if action is Action.CREATE_DATABASE:
        if not scope.collections.everything:
            raise _partly("database")
        return GO_ON if scope.databases.everything else AccessPlan(name_field="name", names=scope.databases)
    if not scope.whole_tenants:
        raise _partly("tenant")
    return GO_ON


def _partly(what: str) -> GatewayError:
    return Forbidden(f"this key sees only a part of a {what}, and may neither make nor change one")


def require_name(plan_: AccessPlan, body: bytes) -> None:
    """Raise Forbidden unless the body names what may be named. For whole bodies; see `AccessPlan.name_field`."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Forbidden("this key may only name certain things, and what this body names cannot be read") from None
    name = value.get(plan_.name_field) if isinstance(value, dict) else None
    if name is None and plan_.optional_name and isinstance(value, dict):
        return
    if name not in plan_.names or not isinstance(name, str):
        raise Forbidden(
            f"this key may not use this value as {plan_.name_field!r}",
            f"it may use {', '.join(plan_.names.patterns or ())}",
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def identity(name: str, scope: Scope) -> Answer:
    """What `/api/v2/auth/identity` says of a key, in the shape that chromadb's clients read.

    They take a single tenant or database for their own if told to; `*` stands for more than one.
    """

    def single(names: Names) -> bool:
        return names.patterns is not None and not any(mark in each for each in names.patterns for mark in "*?")

    tenants, databases = scope.tenants, scope.databases
    tenant = tenants.patterns[0] if single(tenants) and tenants.patterns and len(tenants.patterns) == 1 else "*"
    listed = list(databases.patterns or ()) if single(databases) else ["*"]
    body = json.dumps({"user_id": name, "tenant": tenant, "databases": listed}, separators=(",", ":"))
    return Answer(200, body.encode())


def chroma_error(status: int, name: str, message: str) -> Answer:
    """As Chroma writes its errors (`rust/frontend/src/types/errors.rs`)."""
    body = json.dumps({"error": name, "message": message}, separators=(",", ":"), ensure_ascii=False)
    return Answer(status, body.encode("utf-8", "replace"))


def not_found(message: str) -> Answer:
    return chroma_error(404, "NotFoundError", message)


NOTHING_HERE = Answer(404, b"")
"""As Chroma answers for a route that it does not have."""
