"""Keys, and the format of a keys file. Pure.

A keys file is TOML or JSON:

    [[keys]]
    name = "crawler"                    # for metrics and the audit; letters, digits, '.', '_' and '-'
    id = "5f1d0c7e9a42"                 # with `hash`, what `chroma-gateway key new` prints
    hash = "sha256:…"
    role = "writer"                     # reader, writer or admin
    tenants = ["acme"]                  # these three are optional: without one, everything
    databases = ["web-*"]
    collections = ["pages-*", "links"]
    expires = 2027-01-31T00:00:00Z      # optional
    ack = "stored"                      # optional: no write is answered before the store has it; or "local"
    limits = { requests_per_s = 50, in_flight = 8, body_bytes = 1000000, records = 500 }   # optional

Unknown fields are errors: a misspelt `collections` must not mean all collections.
"""

import json
import re
import tomllib
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.auth.ack import Ack
from gateway.auth.quota import QuotaLimits
from gateway.auth.scope import EVERYTHING, Names, Role, Scope
from gateway.auth.tokens import is_digest
from gateway.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{12}")
MAX_KEYS = 10_000
ADMIN_NAME = "admin"
"""The name of the key of GATEWAY_ADMIN_TOKEN."""
ANONYMOUS_NAME = "anonymous"


class Key(NamedTuple):
    """What the gateway knows about a token. `expires_at_s` is in seconds since the epoch.

    With `limits` of None the limits of `GATEWAY_LIMIT_*` apply. `ack` is the least acknowledgement level of its writes.
    """

    name: str
    id: str
    digest: str
    role: Role
    scope: Scope = EVERYTHING
    expires_at_s: float | None = None
    limits: QuotaLimits | None = None
    ack: Ack | None = None


Pattern = Annotated[str, Field(min_length=1, max_length=512)]
Patterns = Annotated[list[Pattern], Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _Limits(_Strict):
    requests_per_s: float = Field(0, ge=0, le=1e6, allow_inf_nan=False)
    in_flight: int = Field(0, ge=0)
    body_bytes: int = Field(0, ge=0)
    records: int = Field(0, ge=0)


def _moment(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


class _Key(_Strict):
    name: str
    id: str
    hash: str
    role: Literal["reader", "writer", "admin"]
    tenants: Patterns | None = None
    databases: Patterns | None = None
    collections: Patterns | None = None
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None
    limits: _Limits | None = None
    ack: Literal["local", "stored"] | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or value in (ADMIN_NAME, ANONYMOUS_NAME):
            raise ValueError(
                f"must be 1 to 64 letters, digits, '.', '_' or '-', and not {ADMIN_NAME!r} or {ANONYMOUS_NAME!r}"
            )
        return value

    @field_validator("id")
    @classmethod
    def _made(cls, value: str) -> str:
        if not _ID.fullmatch(value):
            raise ValueError("must be what `chroma-gateway key new` printed")
        return value

    @field_validator("hash")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if not is_digest(value):
            raise ValueError("must be 'sha256:' and 64 hex digits, as `chroma-gateway key new` printed; never the key")
        return value

    @field_validator("expires")
    @classmethod
    def _exact(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("must say its time zone, for instance 2027-01-31T00:00:00Z")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "_Key":
        if self.role == "admin" and any((self.tenants, self.databases, self.collections)):
            raise ValueError("an admin acts on everything and can have no tenants, databases or collections")
        return self

    def key(self) -> Key:
        scope = Scope(Names.of(self.tenants), Names.of(self.databases), Names.of(self.collections))
        return Key(
            self.name,
            self.id,
            self.hash,
            Role[self.role.upper()],
            scope,
            self.expires.astimezone(UTC).timestamp() if self.expires else None,
            QuotaLimits(**self.limits.model_dump()) if self.limits else None,
            Ack(self.ack) if self.ack else None,
        )


class _File(_Strict):
    keys: list[_Key] = Field(max_length=MAX_KEYS)


def parse_keys(text: str, source: str) -> list[Key]:
    """The keys in `text`, which is TOML, or JSON if it begins with `{`. Raises ConfigError naming `source`.

    No message repeats a value: it may be a token in the wrong place.
    """
    try:
        as_json = text.lstrip().startswith("{")
        raw = json.loads(text, object_pairs_hook=_without_duplicates) if as_json else tomllib.loads(text)
        keys = [each.key() for each in _File.model_validate(raw).keys]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False, include_context=False)[:5]
        )
        raise ConfigError(f"{source} is not a list of keys: {problems}", "docs/security.md shows one") from None
    except (ValueError, RecursionError, OverflowError) as error:
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError | _DuplicateField) else "it cannot be read"
        if isinstance(error, json.JSONDecodeError):
            where = f"{error.msg} at line {error.lineno}"
        raise ConfigError(f"{source} is neither TOML nor JSON: {where}", "docs/security.md shows one") from None
    for what in ("name", "id"):
        values = [getattr(key, what) for key in keys]
        if len(set(values)) < len(values):
            raise ConfigError(f"{source}: two keys have the same {what}", f"each needs a {what} of its own")
    return keys


class _DuplicateField(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _DuplicateField("one object has two fields with the same name")
    return dict(pairs)
