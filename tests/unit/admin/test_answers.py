"""The client's methods and types are those of the API: no route without a method, no field without a type."""

import inspect
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from pydantic import AwareDatetime, BaseModel

from gateway.admin import answers
from gateway.admin.calls import Body, Call, call
from gateway.admin.routes import DocumentRoutes, GatewayRoutes, JobRoutes, SnapshotRoutes
from gateway.api.app import admin_application
from gateway.api.collections import CollectionList, DatabaseList, IndexFiles, ListedCollectionBody, Repaired
from gateway.api.documents import DocumentBody, DocumentList, Flags
from gateway.api.journal import (
    Flushed,
    History,
    HistoryGap,
    HistoryHole,
    HistoryMark,
    HistoryPart,
    HistorySnapshot,
    HistoryTimeline,
    RestoredSnapshot,
    RestoredState,
    RestorePreview,
)
from gateway.api.snapshots import Quiesced, Resumed, SnapshotList
from gateway.auth.keyring import Keyring
from gateway.config import Settings
from gateway.jobs import JobStatus
from gateway.observability.check.answers import CheckFinding, CheckReport
from gateway.snapshot.gc import GcResult
from gateway.snapshot.model import Snapshot, SnapshotCollection, Verification

ANSWERED: dict[type[BaseModel], Any] = {
    Snapshot: answers.Snapshot,
    SnapshotCollection: answers.SnapshotCollection,
    SnapshotList: answers.SnapshotList,
    Verification: answers.Verification,
    GcResult: answers.GcResult,
    JobStatus: answers.Job,
    Quiesced: answers.Quiesced,
    Resumed: answers.Resumed,
    Repaired: answers.Repaired,
    IndexFiles: answers.Index,
    ListedCollectionBody: answers.Collection,
    CollectionList: answers.CollectionList,
    DatabaseList: answers.DatabaseList,
    DocumentBody: answers.Document,
    DocumentList: answers.DocumentList,
    Flags: answers.Flags,
    Flushed: answers.Flushed,
    RestoredState: answers.RestoredState,
    RestoredSnapshot: answers.RestoredSnapshot,
    RestorePreview: answers.RestorePreview,
    History: answers.History,
    HistorySnapshot: answers.HistorySnapshot,
    HistoryMark: answers.HistoryMark,
    HistoryGap: answers.HistoryGap,
    CheckReport: answers.CheckReport,
    CheckFinding: answers.CheckFinding,
    HistoryHole: answers.HistoryHole,
    HistoryPart: answers.HistoryPart,
    HistoryTimeline: answers.HistoryTimeline,
}


def shape(hint: Any) -> Any:
    """The type as JSON has it: moments are strings, tuples are lists, models are dictionaries of known fields."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return frozenset(map(str, map(shape, arguments)))
    if origin in (list, tuple):
        return [shape(arguments[0])]
    if origin is Literal:
        return arguments
    if origin is dict:
        return ("map", shape(arguments[1]))
    if is_typeddict(hint) or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        names = hint.model_fields if issubclass(hint, BaseModel) else hint.__annotations__
        return {name: shape(each) for name, each in get_type_hints(hint).items() if name in names}
    return str if hint in (datetime, AwareDatetime) else hint


@pytest.mark.parametrize("model", ANSWERED, ids=lambda model: model.__name__)
def test_every_answer_has_its_type(model: type[BaseModel]) -> None:
    """The same fields with the same types as the model of the route."""
    assert shape(ANSWERED[model]) == shape(model)


# Values for the parameters of methods that have no default.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("snapshot", "job_id", "avatar", "collection"), "x"),
    "path": "x/vectorstore_data/a.md",
    "folder": "x/vectorstore_data",
    "to": "y/vectorstore_data/a.md",
    "file": None,
    "archive": Body(iter(()), 0),
    "content": Body(iter(()), 0),
    "used": True,
    "at": "latest",
}


def calls() -> Iterator[Call[Any]]:
    """A call of each method."""
    for routes in (GatewayRoutes, SnapshotRoutes, JobRoutes, DocumentRoutes):
        group = routes()
        if isinstance(group, DocumentRoutes):
            group.user_id = "default"
        for name, method in inspect.getmembers(routes, lambda each: isinstance(each, call)):
            if name == "request":
                continue
            parameters = list(inspect.signature(method._build).parameters.values())[1:]
            needed = {each.name: VALUES[each.name] for each in parameters if each.default is inspect.Parameter.empty}
            yield method._build(group, **needed)


def test_every_route_has_a_method(tmp_path: Path) -> None:
    """Except health and metrics, which need no token, the user's images, and a job's events, which `watch` reads."""
    settings = Settings(data_dir=tmp_path)
    api = admin_application(settings, Keyring("a-token-of-tests")).openapi()["paths"]
    served = {
        (method.upper(), re.compile(re.sub(r"\{path\}", ".+", re.sub(r"\{(?!path)\w+\}", "[^/]+", path))))
        for path, methods in api.items()
        for method in methods
        if path.startswith("/admin/") and "/image" not in path and not path.endswith("/events")
    }
    called = {(each.method, each.path) for each in calls()}

    def is_served(method: str, path: str) -> bool:
        return any(each == method and pattern.fullmatch(path) for each, pattern in served)

    def is_called(method: str, pattern: re.Pattern[str]) -> bool:
        return any(each == method and pattern.fullmatch(path) for each, path in called)

    assert [each for each in called if not is_served(*each)] == []
    assert [each for each in served if not is_called(*each)] == []


def test_every_method_says_whether_a_retry_is_safe() -> None:
    """In its docstring."""
    silent = [
        f"{routes.__name__}.{name}"
        for routes in (GatewayRoutes, SnapshotRoutes, JobRoutes, DocumentRoutes)
        for name, method in inspect.getmembers(routes, lambda each: isinstance(each, call))
        if name != "request" and "retry" not in str(method.__doc__)
    ]
    assert silent == []
