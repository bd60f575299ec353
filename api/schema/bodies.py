"""What is asked: bodies of requests. Unknown fields are refused: a misspelt option must not be ignored in silence."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from ...allocator import PlanRequest, ProfileRequest

Scope = Literal["read", "plan", "admin"]
Word = Annotated[str, Field(max_length=200)]
Source = Annotated[str, Field(max_length=4096)]
NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"  # something to see, and no control characters
MOST_CELLS = 10_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProfileBody(_Body):
    """What to measure. The fields decide the profile's id; the same body measures nothing twice."""

    model: Source = Field(min_length=1, examples=["smollm2-135m"], description="hub name, folder, .gguf file or alias")
    metric: Word = "kl_fisher"
    formats: tuple[Word, ...] | None = Field(
        default=None, description="the palette; the default is the metric's and target's own"
    )
    calibration: Source | None = Field(
        default=None, description="a text file, a folder of texts or of images; default: built-in text"
    )
    tokens: int = Field(default=4096, ge=1, le=10_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounding: Word = Field(default="gptq", description="gptq, or nearest, which needs no data")

    until_stable: Word | None = Field(
        default=None,
        description="a budget: calibration stops when the plan for it has stopped changing, at `tokens` at the latest",
    )
    stream: bool = Field(default=False, description="keep one block of the model in memory at a time; no number depends on it")
    sibling: Word | None = Field(
        default=None, description="id of the stored profile of a smaller model of the family, to plan by without measuring"
    )
    device: Word = Field(default="auto", description="where torch computes: auto, cpu, cuda, cuda:1, mps, ...; no part of the id")

    def profile_request(self) -> ProfileRequest:
        from ...allocator import ProfileRequest

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

    budget: Word = Field(min_length=1, examples=["60MiB", "3.25bpw", "40%"])
    target: Word = "native"
    solver: Word = "best"
    pins: dict[Word, Word] = Field(default_factory=dict, max_length=32, description="regular expression of unit names -> format")
    latency_ms: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="a second limit: milliseconds of one decoding step at batch 1 on `latency_device`",
    )
    latency_device: Word | None = Field(
        default=None, description="name of a latency table, default h100; not the device that torch computes on"
    )
    verify: bool = Field(default=False, description="measure the plan once it is made")

    def profile(self) -> ProfileBody:
        """What has to be measured for the plan."""
        return ProfileBody.model_validate(self.model_dump(include=set(ProfileBody.model_fields)))

    def plan_request(self) -> PlanRequest:
        from ...allocator import PlanRequest

        pins = tuple(self.pins.items())
        profile = self.profile_request()
        return PlanRequest(profile, self.budget, self.target, self.solver, pins, self.latency_ms, self.latency_device)


class InspectBody(_Body):
    model: Source = Field(min_length=1)
    stream: bool = Field(default=False, description="read the weights one tensor at a time")


class VerifyBody(_Body):
    plan_id: Word


class ExportBody(_Body):
    to: Word = Field(
        default="bitplan", min_length=1, examples=["bitplan"], description="what to write: bitplan is the quantized folder itself"
    )


class ExecuteBody(ExportBody):
    """Of an execute job: the files appear as `exports/<plan id>/<to>/` below the artifacts root."""

    plan_id: Word


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


_Several = (Field(min_length=1, max_length=1000), AfterValidator(_distinct))
Models = Annotated[tuple[Annotated[Source, Field(min_length=1)], ...], *_Several]
Words = Annotated[tuple[Annotated[Word, Field(min_length=1)], ...], *_Several]


class SweepBody(_Body):
    """Many plans: every model with every metric for every target at every budget, in that order."""

    models: Models = Field(examples=[["smollm2-135m"]])
    budgets: Words = Field(examples=[["25%", "40%", "60MiB"]])
    targets: Words = ("native",)
    metrics: Words = ("kl_fisher",)
    solver: Word = "best"
    formats: tuple[Word, ...] | None = None
    calibration: Source | None = None
    tokens: int = Field(default=4096, ge=1, le=10_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    rounding: Word = "gptq"
    stream: bool = False
    device: Word = "auto"
    verify: bool = Field(default=False, description="measure every plan once it is made")

    @model_validator(mode="after")
    def _is_bounded(self) -> SweepBody:
        count = len(self.models) * len(self.metrics) * len(self.targets) * len(self.budgets)
        if count > MOST_CELLS:
            raise ValueError(f"a sweep of {count} plans is too large (at most {MOST_CELLS}); split it")
        return self

    def plan_bodies(self) -> tuple[PlanBody, ...]:
        """The request of each cell."""
        shared = self.model_dump(exclude={"models", "budgets", "targets", "metrics"})
        return tuple(
            PlanBody(model=model, metric=metric, target=target, budget=budget, **shared)
            for model, metric, target, budget in product(self.models, self.metrics, self.targets, self.budgets)
        )


class SessionBody(_Body):
    """What a browser signs in with."""

    key: str = Field(min_length=1, max_length=200, examples=["bp_..."])
    next: str = Field(default="/", max_length=4000, description="the page to go to then, where a form asks")


class KeyBody(_Body):
    name: str = Field(
        min_length=1, max_length=100, pattern=NAME, examples=["ci"], description="whose key it is; jobs bear this name as owner"
    )
    scope: Scope = Field(default="read", description="read: look. plan: also start jobs. admin: also delete, and make keys")
    days: float | None = Field(default=None, gt=0, le=36500, description="how long the key is good; null: until revoked")
