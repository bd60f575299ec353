"""What is answered: the documents of responses."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .bodies import Scope, SweepBody

Item = TypeVar("Item")
JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
JobKind = Literal["inspect", "profile", "plan", "verify", "execute", "sweep"]
ACTIVE: tuple[JobStatus, ...] = ("queued", "running", "canceling")


class Problem(BaseModel):
    """RFC 9457. Further members depend on the type: `minimum_bytes` and `maximum_bytes`, `known`, `errors`, ..."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/budget-infeasible"])
    title: str
    status: int
    detail: str


class Progress(BaseModel):
    """How far the current stage is: `fraction` of it is done, `eta_seconds` until its end."""

    stage: str
    done: int
    total: int
    fraction: float
    eta_seconds: float | None


class JobView(BaseModel):
    id: str
    kind: JobKind
    status: JobStatus
    owner: str = Field(default="", description="name of the key that asked for it; empty where keys are not used")
    parent: str | None = Field(default=None, description="the job that made this one")
    created_at: str
    started_at: str | None
    finished_at: str | None
    attempt: int = Field(description="how often a worker has taken the job up")
    version: int = Field(description="grows with every change; the id of the matching event")
    progress: Progress | None
    input: dict[str, Any]
    result: dict[str, Any] | None
    error: Problem | None
    links: dict[str, str]

    @property
    def finished(self) -> bool:
        return self.status not in ACTIVE


class PlanSummary(BaseModel):
    id: str
    model: str
    target: str
    budget: str
    limit_bytes: int
    bytes: int
    loss: float
    stderr: float | None
    quantity: str
    metric: str
    stored_bits_per_weight: float
    created_at: str
    verified: bool | None = Field(description="null: never measured; else whether it kept its promise")
    measured_loss: float | None = Field(default=None, description="null: never measured")


class ProfileSummary(BaseModel):
    id: str
    model: str
    metric: str
    quantity: str
    units: int
    formats: list[str]
    seconds: float
    created_at: str


class Named(BaseModel):
    """One thing that can be asked for by name."""

    model_config = ConfigDict(extra="allow")

    name: str
    summary: str


class ListView(BaseModel, Generic[Item]):
    """One page, newest first. `next_cursor` asks for the next one; null: there is none."""

    items: list[Item]
    next_cursor: str | None = None


class SweepCell(BaseModel):
    """One plan of a sweep."""

    index: int
    model: str
    metric: str
    target: str
    budget: str
    status: Literal["queued", "running", "succeeded", "failed"] = "queued"
    plan: PlanSummary | None = None
    error: Problem | None = None


class SweepView(BaseModel):
    id: str
    job_id: str
    owner: str = ""
    created_at: str
    status: JobStatus = Field(description="of the job that works on it")
    request: SweepBody
    cells: list[SweepCell] = Field(description="in the order models x metrics x targets x budgets")
    links: dict[str, str]

    @property
    def finished(self) -> bool:
        return self.status not in ACTIVE


class ExportFile(BaseModel):
    path: str = Field(description="relative to the `href` of its export")
    bytes: int


class ExportView(BaseModel):
    """Files that an engine loads, made from a plan; present only when whole."""

    to: str
    files: list[ExportFile]
    bytes: int
    href: str


class KeyView(BaseModel):
    """An API key without its secret."""

    id: str
    name: str
    scope: Scope
    prefix: str = Field(description="first characters of the secret, to tell keys apart")
    created_at: str
    expires_at: str | None = None
    last_used_at: str | None = None
    revoked: bool = False


class CreatedKey(KeyView):
    """A key and its secret, which is shown only once."""

    secret: str = Field(examples=["bp_..."])


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    status: Literal["ready"]


class Version(BaseModel):
    bitplan: str
    python: str


class WorkerView(BaseModel):
    """A worker process and its last sign of life."""

    id: str
    host: str
    pid: int
    process_started: float = Field(description="seconds since 1970, to tell two processes of one pid apart")
    version: str
    beat: int = Field(description="grows while the worker lives")
    job_id: str | None = None


class ModelView(BaseModel):
    """A model that was inspected."""

    model: str
    fingerprint: str
    architecture: str
    units: int
    parameters: int
    plans: int
    profiles: int
    created_at: str
    last_used_at: str = Field(description="when its newest plan, profile or inventory came")
