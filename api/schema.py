"""Request and response models. Unknown fields are refused: a misspelt option must not be ignored in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ..allocator import PlanRequest, ProfileRequest

Item = TypeVar("Item")
JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
JobKind = Literal["inspect", "profile", "plan", "verify"]
ACTIVE: tuple[JobStatus, ...] = ("queued", "running", "canceling")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProfileBody(_Body):
    """What to measure. The fields decide the profile's id; the same body measures nothing twice."""

    model: str = Field(min_length=1, examples=["smollm2-135m"], description="hub name, folder, .gguf file or alias")
    metric: str = "kl_fisher"
    formats: tuple[str, ...] | None = Field(default=None, description="the palette; the default is the metric's and target's own")
    calibration: str | None = Field(
        default=None, description="a text file, a folder of texts or of images; default: built-in text"
    )
    tokens: int = Field(default=4096, ge=1, le=10_000_000)
    seed: int = Field(default=0, ge=0)
    rounding: str = Field(default="gptq", description="gptq, or nearest, which needs no data")

    until_stable: str | None = Field(
        default=None,
        description="a budget: calibration stops when the plan for it has stopped changing, at `tokens` at the latest",
    )
    stream: bool = Field(default=False, description="keep one block of the model in memory at a time; no number depends on it")
    sibling: str | None = Field(
        default=None, description="id of the stored profile of a smaller model of the family, to plan by without measuring"
    )
    device: str = Field(default="auto", description="where torch computes: auto, cpu, cuda, cuda:1, mps, ...; no part of the id")

    def profile_request(self) -> ProfileRequest:
        from ..allocator import ProfileRequest

        return ProfileRequest(
            self.model,
            self.metric,
            self.formats,
            self.calibration,
            self.tokens,
            self.seed,
            self.rounding,
            self.until_stable,
            self.stream,
            self.sibling,
            self.device,
        )


class PlanBody(ProfileBody):
    """A profile's settings, what may be spent and for which engine."""

    budget: str = Field(min_length=1, examples=["60MiB", "3.25bpw", "40%"])
    target: str = "native"
    solver: str = "best"
    pins: dict[str, str] = Field(default_factory=dict, description="regular expression of unit names -> format")
    latency_ms: float | None = Field(
        default=None, description="a second limit: milliseconds of one decoding step at batch 1 on `latency_device`"
    )
    latency_device: str | None = Field(
        default=None, description="name of a latency table, default h100; not the device that torch computes on"
    )
    verify: bool = Field(default=False, description="measure the plan once it is made")

    def profile(self) -> ProfileBody:
        """What has to be measured for the plan."""
        return ProfileBody.model_validate(self.model_dump(include=set(ProfileBody.model_fields)))

    def plan_request(self) -> PlanRequest:
        from ..allocator import PlanRequest

        pins = tuple(self.pins.items())
        profile = self.profile_request()
        return PlanRequest(profile, self.budget, self.target, self.solver, pins, self.latency_ms, self.latency_device)


class InspectBody(_Body):
    model: str = Field(min_length=1)
    stream: bool = Field(default=False, description="read the weights one tensor at a time")


class VerifyBody(_Body):
    plan_id: str


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
