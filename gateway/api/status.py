"""What `GET /admin/status` answers, field by field. `gateway.observability.health` collects it."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

from gateway.snapshot.model import Verification
from gateway.vectorstore import Phase


class GateStatus(BaseModel):
    state: Literal["open", "closing", "closed"] = Field(description="writes go through only while it is `open`")
    refusal: str | None = Field(description="why every request is refused; null if none is")
    writes_under_way: int = Field(description="writes that Chroma has not answered yet")
    writes_waiting: int = Field(description="writes that wait until the gate opens")


class ChromaStatus(BaseModel):
    up: bool = Field(description="whether Chroma answers")
    starts: int = Field(description="how often Chroma was seen to come up since the gateway's start")
    unreadable: dict[str, str] = Field(
        description="why, by name, for the collections that cannot be read", examples=[{"notes": "its index is torn"}]
    )


class CurrentStatus(BaseModel):
    operation: str | None = Field(description="the snapshot, restore or other operation under way")
    bytes_done: int | None = Field(None, description="of a restore: how much is fetched and verified")
    bytes_total: int | None = Field(None, description="of a restore: how much there is")


class DataDirStatus(BaseModel):
    path: str = Field(description="Chroma's persist directory")
    size_bytes: int | None = Field(description="of everything in it")
    free_bytes: int | None = Field(description="left on its file system")
    sqlite_bytes: int | None = Field(description="of the database")
    log_backlog_records: int | None = Field(description="rows of Chroma's log")
    orphaned_directories: int | None = Field(description="indexes of deleted collections")
    orphaned_bytes: int | None = Field(description="their size")
    problem: str | None = Field(description="why the directory cannot be measured")


class CollectionStatus(BaseModel):
    tenant: str = Field(description="its tenant")
    database: str = Field(description="its database")
    name: str = Field(description="its name")
    id: str = Field(description="its UUID")
    records: int = Field(description="how many it has")
    dimension: int | None = Field(description="of its embeddings; null before the first record")
    hnsw_bytes: int = Field(description="size of its index on disk; 0 before the first sync")


class MemoryStatus(BaseModel):
    gateway_bytes: int | None = Field(description="resident memory of the gateway's process, without Chroma's")


class LeaseStatus(BaseModel):
    role: str = Field(description="`writer` if this gateway may write to the store")
    epoch: int | None = Field(description="counts the changes of the writer")
    holder: str | None = Field(description="which process has the lease, as far as is known")
    conditional_writes: str | None = Field(
        description="whether the store's conditional writes hold; null if not probed"
    )
    reason: str | None = Field(description="why this gateway does not have the lease")
    warnings: list[str] = Field(description="what is wrong with the lease or the store")


class ScheduleStatus(BaseModel):
    interval_s: float = Field(description="GATEWAY_SNAPSHOT_INTERVAL_S; 0 is off")
    cron: str | None = Field(description="GATEWAY_SNAPSHOT_CRON")
    final: bool = Field(description="whether a snapshot is taken at SIGTERM; with a journal there is none")
    unsaved_s: float = Field(
        description="age of the oldest write that the journal lacks, or without a journal every snapshot, in seconds"
    )


class JournalStatus(BaseModel):
    on: bool = Field(description="whether what is written goes to the journal")
    position: str = Field(description="everything up to there is stored, as `{epoch}-{number}`")
    at: AwareDatetime | None = Field(description="the moment of the newest entry that is stored; null if none is known")
    lag_s: float = Field(description="age of the oldest write that is not stored, in seconds; 0 if there is none")
    unstored_bytes: int | None = Field(description="at most so many bytes are not stored; null if that is not known")
    recovery_s: float = Field(description="about how much longer than of the newest snapshot a restore takes now")
    waiting: int = Field(description="requests that wait until what they wrote is stored")
    cut_p50_s: float | None = Field(description="how long a cut takes: median of the newest hundred")
    put_p50_s: float | None = Field(description="how long the store takes for an entry: median of the newest hundred")
    entries: int = Field(description="stored since the gateway's start")
    stored_bytes: int = Field(description="of these entries")
    failures: int = Field(description="attempts to store an entry that failed, since the gateway's start")
    requests_last_hour: int = Field(description="requests (PUT) that stored entries in the last hour")
    requests_last_hour_usd: float = Field(description="what these cost at the list price of S3 Standard, in USD")
    problem: str | None = Field(description="why nothing can be stored at this moment, or no journal is possible")
    restorable_from: AwareDatetime | None = Field(
        description="any moment from here on can be restored, as of the last look; null if that is not known yet"
    )
    restorable_to: AwareDatetime | None = Field(description="the newest moment that can be restored")


class SnapshotSummary(BaseModel):
    id: str = Field(description="its id")
    label: str | None = Field(description="a name for people")
    created_at: AwareDatetime = Field(description="the moment that it holds")
    state: Literal["complete", "damaged"] = Field(description="whether it can be restored")
    size_bytes: int = Field(description="of the restored data")
    uploaded_bytes: int = Field(description="what it added to the store")
    duration_s: float = Field(description="how long it took")
    verified: Verification | None = Field(description="result of its latest verification; null if never verified")


class StoreStatus(BaseModel):
    url: str = Field(description="GATEWAY_STORE with the user's prefix")
    reachable: bool = Field(description="whether it answered just now")
    snapshots: int | None = Field(None, description="how many there are")
    last_snapshot: SnapshotSummary | None = Field(None, description="the newest one")
    recent: list[SnapshotSummary] | None = Field(None, description="the newest five")
    last_snapshot_age_s: float | None = Field(None, description="age of the newest one, in seconds")
    error: str | None = Field(None, description="of a store that is not reachable: what kind of error")
    message: str | None = Field(None, description="of a store that is not reachable: why")
    hint: str | None = Field(None, description="of a store that is not reachable: the way out")


class LastError(BaseModel):
    at: AwareDatetime = Field(description="when it happened")
    error: str = Field(description="what kind")
    message: str = Field(description="what failed, and why")
    hint: str | None = Field(None, description="the way out, where we know it")


class Status(BaseModel):
    """Everything that an operator asks first."""

    version: str = Field(description="of the gateway")
    chroma_version: str = Field(description="of the installed chromadb")
    uptime_s: float = Field(description="since the gateway's start, in seconds")
    ready: bool = Field(description="whether the data are served, as `/readyz` says")
    phase: Phase = Field(description="how far a start has come, or what is in the way")
    reason: str | None = Field(description="why it is not ready")
    warnings: list[str] = Field(description="what an operator should know although everything else works")
    gate: GateStatus = Field(description="whether writes go through")
    chroma: ChromaStatus = Field(description="the Chroma behind this gateway")
    current: CurrentStatus = Field(description="what is under way")
    data_dir: DataDirStatus = Field(description="sizes on disk; null where they are not known")
    collections: list[CollectionStatus] = Field(description="the largest hundred")
    memory: MemoryStatus = Field(description="memory of this process")
    lease: LeaseStatus = Field(description="who may write to the store")
    snapshots: ScheduleStatus = Field(description="when snapshots are taken, and what is not in one")
    journal: JournalStatus = Field(description="what of the writes is stored, and which moments can be restored")
    store: StoreStatus = Field(description="the store, asked just now")
    last_error: LastError | None = Field(
        description="the newest error of a snapshot, a garbage collection or the store that no later success settled"
    )
