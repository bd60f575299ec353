"""A plan's document written straight from the answer: the same JSON as `Plan.model_dump_json`, without the objects.

Of a large plan nearly all is the same for every budget of a profile: names, losses, bytes. `PlanWriter` keeps those texts
and joins them with what a budget changes: the choice, a few sums and the multiplier.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, TypeAdapter

from .build import build_on
from .groundwork import Groundwork
from .plan import Plan, PlannedBudget, PlannedModel, Predicted, Provenance
from .request import PlanRequest
from .solve import Answer, answer_on, losses_or_none, needs_measuring, plan_of, small_parts

ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, eq=False)
class PlanDocument:
    """A plan as text, and the parts of it that lists show. It carries no evidence yet. `gap` is the certificate's."""

    id: str
    model: PlannedModel
    target: str
    budget: PlannedBudget
    predicted: Predicted
    provenance: Provenance
    gap: float
    text: str

    @classmethod
    def of(cls, plan: Plan) -> PlanDocument:
        text = plan.model_dump_json()
        gap = plan.certificate.gap
        return cls(plan.id, plan.model, plan.target, plan.budget, plan.predicted, plan.provenance, gap, text)


class PlanWriter:
    """Writes plans on one groundwork, whatever their limits."""

    def __init__(self, ground: Groundwork) -> None:
        self.ground = ground

    @property
    def units(self) -> int:
        return len(self.ground.inventory.units)

    def needs_profile(self, request: PlanRequest) -> bool:
        """Whether anything has to be measured, on a groundwork without a report. Raises Infeasible."""
        return needs_measuring(build_on(self.ground, request))

    def plan(self, request: PlanRequest) -> Plan:
        """The plan for a checked request of this groundwork. Raises Infeasible."""
        return plan_of(answer_on(self.ground, request))

    def write(self, request: PlanRequest) -> PlanDocument:
        """The document of `plan`, for a checked request of this groundwork. Raises Infeasible."""
        answer = answer_on(self.ground, request)
        if self.ground.report is None or self.ground.timing is not None:  # other tables with every limit
            return PlanDocument.of(plan_of(answer))
        units = answer.choice[self._item_of_name].tolist()
        chosen = answer.choice.tolist()
        small = small_parts(answer)
        identity = self._plan_id(answer, chosen)
        assignment = ",".join([name + self._values[j] for name, j in zip(self._names, units, strict=True)])
        fields = {
            "schema_version": "1",
            "id": _json(identity),
            "model": _json(small["model"]),
            "target": _json(small["target"]),
            "budget": _json(small["budget"]),
            "pins": self._pins,
            "assignment": f"{{{assignment}}}",
            "predicted": _json(small["predicted"]),
            "certificate": self._certificate(answer, chosen),
            "provenance": _json(small["provenance"]),
            "notes": _json(small["notes"]),
            "evidence": "null",
        }
        text = "{" + ",".join([f'"{name}":{value}' for name, value in fields.items()]) + "}"
        kept = {name: small[name] for name in ("model", "target", "budget", "predicted", "provenance")}
        return PlanDocument(id=identity, gap=_gap(answer), text=text, **kept)

    def _plan_id(self, answer: Answer, chosen: list[int]) -> str:
        """`plan.plan_id`, from texts that are at hand."""
        pairs = ",".join([name + self._ends[chosen[item]] for name, item in self._sorted_names])
        before, after = self._around_id
        return hashlib.sha256(f"{before}{answer.built.limit_bytes}{self._sorted_pins}[{pairs}]{after}".encode()).hexdigest()

    def _certificate(self, answer: Answer, chosen: list[int]) -> str:
        certificate = answer.solution.certificate
        assert certificate is not None
        (multiplier,) = certificate.multipliers
        rest = {
            "limit": int(answer.built.problem.limit[0]),
            "choice": chosen,
            "multiplier_numerator": multiplier.numerator,
            "multiplier_denominator": multiplier.denominator,
            "lower_bound": float(certificate.lower_bound / certificate.loss_scale),
            "gap": _gap(answer),
            "proof": answer.solution.proof,
        }
        return self._tables + _json(rest)[1:]

    @cached_property
    def _tables(self) -> str:
        """The certificate up to its limit."""
        tables = self.ground.warm.tables
        shared = {
            "items": self.ground.items,
            "formats": self.ground.formats,
            "loss": losses_or_none(tables),
            "loss_scale": tables.scale,
            "cost": tables.cost[0].tolist(),
        }
        return _json(shared)[:-1] + ","

    @cached_property
    def _names(self) -> list[str]:
        """Units in the order of the assignment, each as the beginning of its entry."""
        return [_json(name) + ":" for names in self.ground.items for name in names]

    @cached_property
    def _item_of_name(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self.ground.items)), self.ground.units_of_item)

    @cached_property
    def _values(self) -> list[str]:
        return [_json(name) for name in self.ground.formats]

    @cached_property
    def _pins(self) -> str:
        return _json(self.ground.pins)

    @cached_property
    def _sorted_names(self) -> list[tuple[str, int]]:
        """Units by name, each as the beginning of its pair in what the id hashes, and its item."""
        named = sorted((name, i) for i, names in enumerate(self.ground.items) for name in names)
        return [(f"[{json.dumps(name)},", i) for name, i in named]

    @cached_property
    def _ends(self) -> list[str]:
        return [f"{json.dumps(name)}]" for name in self.ground.formats]

    @cached_property
    def _sorted_pins(self) -> str:
        return "," + json.dumps(sorted(self.ground.pins.items()), separators=(",", ":")) + ","

    @cached_property
    def _around_id(self) -> tuple[str, str]:
        report = self.ground.report
        fingerprint, target = self.ground.inventory.fingerprint, self.ground.target
        return f"[{json.dumps(fingerprint)},{json.dumps(target)},", f",{json.dumps(None if report is None else report.id)}]"


def _gap(answer: Answer) -> float:
    certificate = answer.solution.certificate
    assert certificate is not None
    return float(certificate.gap / certificate.loss_scale)


def _json(value: Any) -> str:
    """As pydantic writes it."""
    return value.model_dump_json() if isinstance(value, BaseModel) else ANYTHING.dump_json(value).decode()
