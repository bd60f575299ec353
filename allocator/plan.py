"""Plan: an assignment of formats to units with its promises, its certificate and where they come from.

One versioned, engine-neutral JSON document. The certificate carries the whole choice problem as integers, so that a
stranger can check the plan, draw its frontier and see each unit's alternatives with nothing but this document.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import UnknownName, UsageError
from .frontier import explain_unit, frontier_of
from .proof import PlanCertificate

SCHEMA_VERSION = 1


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedModel(_Value):
    id: str
    fingerprint: str
    architecture: str
    family: str
    parameters: int
    native_bytes: int


class PlannedLatency(_Value):
    """A limit on one decoding step at batch 1."""

    device: str = Field(description="the latency table that counted")
    table: str = Field(description="SHA-256 of that table")
    limit_ms: float
    minimum_ms: float = Field(description="the smallest limit that could be met within the budget")


class PlannedBudget(_Value):
    text: str = Field(description="as the user wrote it")
    limit_bytes: int = Field(description="bytes allowed for all weights as stored")
    units_limit_bytes: int = Field(description="what is left of it for the units")
    minimum_bytes: int = Field(description="the smallest budget that could be met with these formats and pins")
    maximum_bytes: int = Field(description="the model's own size: a larger budget buys nothing")
    latency: PlannedLatency | None = Field(default=None, exclude_if=lambda value: value is None)


class BytesByPart(_Value):
    total: int
    codes: int
    scales: int
    zeros: int
    native: int = Field(description="units kept in a float format")
    fixed: int = Field(description="tensors that no plan touches")
    by_format: dict[str, int]


class PredictedLatency(_Value):
    """One decoding step at batch 1: the products of all units, one after the other."""

    ms: float
    device: str
    measured: bool = Field(description="whether every product lies among measured points; else the device's formula gave some")
    source: str = Field(description="what the device's table rests on")


class Predicted(_Value):
    loss: float
    stderr: float | None
    quantity: str
    bytes: BytesByPart
    stored_bits_per_weight: float
    nominal_bits_per_weight: float
    latency: PredictedLatency | None = Field(
        default=None, description="with a limit on it only", exclude_if=lambda value: value is None
    )


class Provenance(_Value):
    profile_id: str | None
    metric: str
    solver: str
    rounding: str
    settings: dict[str, Any]
    data_fingerprint: str
    render_fingerprint: str
    seed: int
    versions: dict[str, str]
    created_at: str
    solve_seconds: float


class Plan(_Value):
    """See `contract.md` of the docs: `id` hashes model, target, limits, pins, assignment and profile; the rest is attached."""

    schema_version: Literal[1] = 1
    id: str
    model: PlannedModel
    target: str
    budget: PlannedBudget
    pins: dict[str, str]
    assignment: dict[str, str]
    predicted: Predicted
    certificate: PlanCertificate
    provenance: Provenance
    notes: list[str] = Field(default_factory=list, description="sentences worth reading, e.g. that the budget exceeds the model")
    evidence: dict[str, Any] | None = Field(default=None, description="an ExecutionReport, once verified")

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan document of any schema version ever written. Raises UsageError when it is none."""
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
                raise ValueError("schema_version is missing or newer than this bitplan")
            return cls.model_validate(document)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"this is not a plan document ({reason}); give a file written by `bitplan plan --out`") from error

    def frontier(self) -> list[dict[str, float]]:
        """Every plan on the lower convex hull of (bytes, loss): `[{"bytes", "loss", "multiplier"}, ...]`, smallest first. A
        limit on the latency is set aside."""
        return frontier_of(self.certificate, self.predicted.bytes.fixed)

    def explain(self, unit: str) -> dict[str, Any]:
        """Why `unit` got its format: every alternative with its loss, bytes and price at the plan's multiplier."""
        if unit not in self.assignment:
            raise UnknownName("unit", unit, self.assignment)
        return explain_unit(self.certificate, unit)


def plan_id(
    fingerprint: str,
    target: str,
    limit_bytes: int,
    pins: dict[str, str],
    assignment: dict[str, str],
    profile_id: str | None,
    latency: tuple[str, str, int] | None = None,
) -> str:
    """SHA-256 of what makes two plans the same plan; `latency` is device, table and limit in nanoseconds, where there is one."""
    key = [fingerprint, target, limit_bytes, sorted(pins.items()), sorted(assignment.items()), profile_id]
    key += [] if latency is None else [latency]
    return hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
