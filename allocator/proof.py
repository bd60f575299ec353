"""PlanCertificate: the evidence for a plan, complete: the whole choice problem in integers, the choice, and the multiplier."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LatencyCertificate(BaseModel):
    """The second limit in the same form: option j of item i takes `cost[i][j]` nanoseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cost: list[list[int]]
    limit: int
    multiplier_numerator: int
    multiplier_denominator: int


class PlanCertificate(BaseModel):
    """The choice problem in integers and the proof. Item i is a group of tied units; its option j has loss
    `loss[i][j] / loss_scale` (null: not allowed) and bytes `cost[i][j]`; `choice[i]` is the option taken. With the
    multiplier lambda = multiplier_numerator / multiplier_denominator (loss units of 1/loss_scale a byte)

        lower bound = sum_i min_j (loss[i][j] + lambda cost[i][j]) - lambda limit

    holds for every plan within the limit. With a limit on the latency, a second multiplier mu prices nanoseconds too:

        lower bound = sum_i min_j (loss[i][j] + lambda cost[i][j] + mu latency.cost[i][j]) - lambda limit - mu latency.limit

    `proof` is `multipliers` when that bound alone proves the choice optimal, `search` when an exact search closed what is
    left of the gap, `bound` when nothing more than the gap is claimed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: list[list[str]]
    formats: list[str]
    loss: list[list[int | None]]
    loss_scale: int
    cost: list[list[int]]
    limit: int
    choice: list[int]
    multiplier_numerator: int
    multiplier_denominator: int
    lower_bound: float = Field(description="in the plan's quantity")
    gap: float = Field(description="predicted loss minus lower bound, in the plan's quantity")
    proof: Literal["multipliers", "search", "bound"]
    latency: LatencyCertificate | None = Field(default=None, exclude_if=lambda value: value is None)
