"""Settings: the one place that reads the environment.

Every variable is documented in docs/configuration.md; a test compares the two. A wrong value, or a
`GATEWAY_*` name that nothing reads, stops the start with a message that names it.
"""

import base64
import difflib
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.auth.addresses import is_loopback, networks
from gateway.errors import ConfigError
from gateway.snapshot.schedule import check_cron
from gateway.storage import registry
from gateway.storage.options import Acl, Addressing, Encryption, RequestPayer, StoreOptions

# One path segment of the bucket layout, in characters that file systems, URLs and S3 all take.
_USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_STORAGE_CLASS = re.compile(r"[A-Z0-9][A-Z0-9_-]{0,63}")
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_CUSTOMER_KEY_BYTES = 32
_OPEN_TO_ALL = (
    "other machines can reach it and no key is configured: set GATEWAY_KEYS_FILE, GATEWAY_KEYS or "
    "GATEWAY_ADMIN_TOKEN (`chroma-gateway key new` makes a key), or GATEWAY_ALLOW_ANONYMOUS=true if everyone may read "
    "and write"
)

URL_FILE = Path("var/url")
"""Where a gateway notes its URL, for the commands in its working directory."""
_AMOUNT = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile("".join(rf"(?:{_AMOUNT}\s*{unit}\s*)?" for unit in ("w", "d", "h", "m(?!s)", "s", "ms")))
_UNITS_S = (7 * 86400, 86400, 3600, 60, 1, 0.001)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
_ENV_FILE = Path(".env")
_ENV_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")

Port = Annotated[int, Field(ge=1, le=65535)]


def seconds(text: str) -> float:
    """The seconds that `text` means: a number, or a duration such as `5m` or `1h30m`. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError("must be seconds, or a duration such as 90s, 5m, 1h30m or 7d")
    return sum(float(amount) * unit_s for amount, unit_s in zip(match.groups(), _UNITS_S, strict=True) if amount)


def moment(text: str, now: datetime | None = None) -> datetime | None:
    """The moment that `text` means: as in RFC 3339 with its zone, or `-15m` for so long ago; None if it is none."""
    try:
        if text.startswith("-") and len(text) > 1:
            return (now or datetime.now(UTC)) - timedelta(seconds=seconds(text[1:]))
        found = datetime.fromisoformat(text) if _DATE.match(text) else None
    except (ValueError, OverflowError):
        return None
    return found.astimezone(UTC) if found is not None and found.tzinfo else None


Seconds = Annotated[
    float,
    BeforeValidator(lambda value: seconds(value) if isinstance(value, str) else value),
    Field(allow_inf_nan=False),
]
"""A time in seconds: a number, or a duration as people write it, such as `5m` or `1h30m`."""
# Containers often pass `NAME=` for "not set".
Optional = BeforeValidator(lambda value: None if value == "" else value)


class Settings(BaseSettings):
    """What an operator can set. Times in seconds end in `_s`; paths are made absolute here."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_ignore_empty=True, extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", validation_alias="HOST")
    port: Port = Field(8000, validation_alias="PORT")
    chroma_port: Port = 8001
    chroma_config: Path | None = None
    data_dir: Path = Path("var/chroma")
    store: str = registry.DEFAULT_URL
    user_id: str = "default"
    admin_token: Annotated[SecretStr | None, Optional] = None
    keys_file: Path | None = None
    keys: Annotated[SecretStr | None, Optional] = None
    allow_anonymous: bool = False
    allow_reset: bool = False
    ready_requires_all: bool = False
    limit_requests_per_s: float = Field(0, ge=0, le=1e6, allow_inf_nan=False)
    limit_in_flight: int = Field(0, ge=0)
    limit_records: int = Field(0, ge=0)
    trusted_proxies: str = ""
    cors_origins: str = ""
    audit_file: Path | None = None
    restore: str = "latest"
    journal_interval_s: Seconds = Field(1, ge=0)
    ack: Literal["local", "stored"] = "local"
    history_s: Seconds = Field(24 * 3600, ge=0)
    recovery_s: Seconds = Field(10, gt=0)
    snapshot_interval_s: Seconds = Field(0, ge=0)
    snapshot_cron: Annotated[str | None, Optional] = None
    snapshot_jitter_s: Seconds = Field(0, ge=0)
    snapshot_ping_url: Annotated[SecretStr | None, Optional] = None
    snapshot_on_exit: bool | None = None
    alert_url: Annotated[SecretStr | None, Optional] = None
    # Must be less than `stopwaitsecs` of supervisord.conf, by the time that giving the lease back may take.
    exit_budget_s: Seconds = Field(8, gt=0)
    keep_last: int = Field(0, ge=0)
    keep_hourly: int = Field(0, ge=0)
    keep_daily: int = Field(0, ge=0)
    keep_weekly: int = Field(0, ge=0)
    keep_monthly: int = Field(0, ge=0)
    keep_yearly: int = Field(0, ge=0)
    gc_grace_s: Seconds = Field(24 * 3600, ge=0)
    store_never_delete: bool = False
    require_fencing: bool = False
    takeover_timeout_s: Seconds = Field(30, ge=0)
    # Of two waits: for the gate, and for a turn at Chroma (`queue_timeout_s` of the data path).
    gate_timeout_s: Seconds = Field(30, gt=0)
    drain_timeout_s: Seconds = Field(30, gt=0)
    read_timeout_s: Seconds = Field(300, gt=0)
    client_timeout_s: Seconds = Field(60, gt=0)
    max_body_bytes: int = Field(40 * 1024 * 1024, gt=0)
    max_upload_bytes: int = Field(64 * 1024**3, gt=0)
    max_in_flight: int = Field(64, ge=1)
    max_queued: int = Field(1024, ge=0)
    max_document_bytes: int = Field(10 * 1024**3, gt=0)
    embedding: str = "default"
    embedding_module: str = ""
    restore_retry_s: Seconds = Field(60, ge=0)
    s3_addressing: Addressing = "auto"
    s3_sse: Encryption | None = None
    s3_sse_kms_key_id: str | None = None
    s3_sse_customer_key: SecretStr | None = None
    s3_acl: Acl | None = None
    s3_storage_class: str | None = None
    s3_request_payer: RequestPayer | None = None
    log_format: Literal["text", "json"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    traces: bool = False
    google_project: str | None = Field(None, validation_alias="GOOGLE_CLOUD_PROJECT")
    # supervisord sets it for the programs it runs; absent when the gateway runs by itself.
    supervisor_url: str | None = Field(None, validation_alias="SUPERVISOR_SERVER_URL")

    @field_validator("chroma_port")
    @classmethod
    def _of_its_own(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("port"):
            raise ValueError(f"PORT is {value} too; Chroma needs a port of its own")
        return value

    @field_validator("data_dir", "keys_file", "audit_file", "chroma_config")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        networks(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in value.split(",") if value else ():
            if not _ORIGIN.fullmatch(origin.strip()):
                raise ValueError(
                    "must be exact origins such as https://app.example.com, separated by commas; '*' is not one"
                )
        return value

    @model_validator(mode="after")
    def _closed_by_default(self) -> "Settings":
        if not (self.is_closed or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(_OPEN_TO_ALL)
        return self

    @field_validator("user_id")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _USER_ID.fullmatch(value):
            raise ValueError("must be 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit")
        return value

    @field_validator("admin_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        # No header can carry the line break with which a file often ends.
        token = value.get_secret_value().strip()
        if len(token) < 8 or not token.isascii():
            raise ValueError("must have at least 8 ASCII characters")
        return SecretStr(token)

    @field_validator("store")
    @classmethod
    def _store_url(cls, value: str) -> str:
        # A file of a secret often ends with a line break.
        value = value.strip()
        if not registry.is_store_url(value):
            raise ValueError(f"must be one of {registry.URL_FORMS}")
        return value

    @field_validator("s3_sse_kms_key_id")
    @classmethod
    def _of_kms(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is not None and others.data.get("s3_sse") not in ("aws:kms", "aws:kms:dsse"):
            raise ValueError("is for GATEWAY_S3_SSE=aws:kms, which is not set")
        return value

    @field_validator("s3_sse_customer_key")
    @classmethod
    def _customer_key(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if value is not None and len(_decoded(value)) != _CUSTOMER_KEY_BYTES:
            raise ValueError(f"must be {_CUSTOMER_KEY_BYTES} bytes in base64: `openssl rand -base64 32` makes some")
        if value is not None and others.data.get("s3_sse"):
            raise ValueError("cannot be set with GATEWAY_S3_SSE: one of the two keys encrypts")
        return value

    @field_validator("s3_storage_class")
    @classmethod
    def _readable_at_once(cls, value: str | None) -> str | None:
        if value in _ARCHIVES:
            raise ValueError("is an archive: objects in it cannot be read at once, so nothing could be restored")
        if value is not None and not _STORAGE_CLASS.fullmatch(value):
            raise ValueError("must be a storage class of the store, such as STANDARD_IA")
        return value

    @field_validator("restore")
    @classmethod
    def _restorable(cls, value: str) -> str:
        if not re.fullmatch(r"latest|none|\d{8}T\d{6}Z-[0-9a-f]{6}", value) and moment(value) is None:
            raise ValueError(
                "must be 'latest', 'none', a snapshot's id such as 20261120T210455Z-3f9a1c, or a moment such as"
                " 2026-11-20T21:04:55Z"
            )
        return value

    @field_validator("ack")
    @classmethod
    def _can_be_stored(cls, value: str, others: ValidationInfo) -> str:
        if value == "stored" and others.data.get("journal_interval_s") == 0:
            raise ValueError("'stored' needs the journal, which GATEWAY_JOURNAL_INTERVAL_S=0 turns off")
        return value

    @field_validator("snapshot_cron")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None:
            check_cron(value)
        return value

    @field_validator("snapshot_ping_url", "alert_url")
    @classmethod
    def _http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value().strip()
        if not url.startswith(("http://", "https://")):
            raise ValueError("must be an http:// or https:// URL")
        return SecretStr(url)

    @property
    def is_closed(self) -> bool:
        """Whether requests to `/api/` need a key.

        An admin token alone closes a gateway that other machines can reach. On loopback it is for `/admin/*` only.
        """
        if self.allow_anonymous:
            return False
        has_keys = self.keys_file is not None or self.keys is not None
        return has_keys or (self.admin_token is not None and not is_loopback(self.host))

    @property
    def local_hosts_only(self) -> bool:
        """Whether requests without a key must name this machine in `Host`: where nothing else protects the gateway."""
        return not self.is_closed and not self.allow_anonymous

    @property
    def origins(self) -> list[str]:
        """The origins in `GATEWAY_CORS_ORIGINS`."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def takes_final_snapshot(self) -> bool:
        """`GATEWAY_SNAPSHOT_ON_EXIT`; by default true if the store outlives the container."""
        return registry.outlives_container(self.store) if self.snapshot_on_exit is None else self.snapshot_on_exit

    @property
    def is_unsaved(self) -> bool:
        """Whether the store outlives the container and neither the journal nor a schedule saves anything in it."""
        saves = self.journal_interval_s or self.snapshot_interval_s or self.snapshot_cron
        return registry.outlives_container(self.store) and not saves

    @property
    def restore_at(self) -> datetime | None:
        """The moment in `GATEWAY_RESTORE`; None if it says something else."""
        return moment(self.restore)

    @property
    def store_options(self) -> StoreOptions:
        """What is set about requests to the store, for `open_storage`."""
        return StoreOptions(
            addressing=self.s3_addressing,
            encryption=self.s3_sse,
            kms_key_id=self.s3_sse_kms_key_id,
            customer_key=_decoded(self.s3_sse_customer_key) if self.s3_sse_customer_key else None,
            acl=self.s3_acl,
            storage_class=self.s3_storage_class,
            request_payer=self.s3_request_payer,
        )

    @property
    def local_url(self) -> str:
        """The gateway's URL on this machine, without a slash at the end."""
        # A server that listens on every address is reached over loopback.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # to connect to
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def repository_prefix(self) -> str:
        """The key prefix of this gateway's own repository in the store."""
        return f"users/{self.user_id}/vectorstore/"

    @property
    def logs_as_json(self) -> bool:
        """Whether log lines are JSON: as `GATEWAY_LOG_FORMAT` says, else wherever stderr is not a terminal."""
        return self.log_format == "json" if self.log_format else not sys.stderr.isatty()


def _decoded(key: SecretStr) -> bytes:
    """The bytes of a key in base64. Without any where it is not that."""
    try:
        return base64.b64decode(key.get_secret_value().strip(), validate=True)
    except ValueError:
        return b""


def variable_of(field: str) -> str:
    """The environment variable behind a field of `Settings`."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"GATEWAY_{field.upper()}"


def _nearest(name: str) -> str | None:
    """The variable whose name is most like `name`, or None. The common beginning `GATEWAY_` is not compared."""
    known = {variable.removeprefix("GATEWAY_"): variable for variable in map(variable_of, Settings.model_fields)}
    near = difflib.get_close_matches(name.removeprefix("GATEWAY_"), known, 1)
    return known[near[0]] if near else None


def _read_env_file() -> None:
    """Add the lines NAME=value of `.env` in the working directory to the environment, unless NAME is set already.

    A value is taken as it is, quotes too: `scripts/install-service` reads the file so. Raises ConfigError if the file
    exists and cannot be read.
    """
    try:
        lines = _ENV_FILE.read_text().splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_ENV_FILE.absolute()} cannot be read: {error}") from error
    for line in lines:
        if match := _ENV_LINE.fullmatch(line):
            os.environ.setdefault(match[1], match[2])


def load_settings(**given: Any) -> Settings:
    """Read `.env` and the environment. Raises ConfigError, which names every variable that is wrong or unknown.

    `given` goes before the environment: values of fields, or of variables that have no prefix.
    """
    _read_env_file()
    known = {variable_of(field) for field in Settings.model_fields}
    problems, hint = [], None
    for name in sorted(os.environ):
        if name.startswith("GATEWAY_") and name not in known:
            problems.append(
                f"{name} is not a setting" + (f"; did you mean {near}?" if (near := _nearest(name)) else "")
            )
            hint = "docs/configuration.md lists them all"
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            # A problem of several settings together has no location; the only one concerns HOST.
            field = str(problem["loc"][0]) if problem["loc"] else "host"
            name = variable_of(field) if field in Settings.model_fields else field
            problems.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigError("; ".join(problems), hint) from None
    if problems:
        raise ConfigError("; ".join(problems), hint)
    return settings
