"""Plans in the store: narrow rows for lists, documents apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from ...allocator.errors import NotFound
from ..schema import ListView, PlanSummary
from .database import insert_new
from .finding import found_id
from .paging import chosen_order, page
from .tables import PlanDocumentRow, PlanRow, timestamp

if TYPE_CHECKING:
    from ...allocator import Plan
    from ...allocator.document import PlanDocument

SORTS = {
    "created_at": None,
    "bytes": PlanRow.bytes,
    "loss": PlanRow.loss,
    "stored_bits_per_weight": PlanRow.stored_bits_per_weight,
}
SUMMARY = (PlanRow.summary, PlanRow.verified, PlanRow.measured_loss)


@dataclass(frozen=True)
class StoredPlan:
    """A plan as it lies in the store: JSON texts, which cost nothing to hand on. `new`: this call stored it."""

    id: str
    document: str
    evidence: str | None
    new: bool = False

    def plan(self) -> Plan:
        from ...allocator import Plan

        evidence = None if self.evidence is None else json.loads(self.evidence)
        return Plan.from_json(self.document).model_copy(update={"evidence": evidence})

    def text(self) -> str:
        """The whole document, evidence in its place."""
        if self.evidence is None:
            return self.document
        return json.dumps({**json.loads(self.document), "evidence": json.loads(self.evidence)})


def insert_plan(session: Session, plan: Plan) -> StoredPlan:
    """Store a plan that is not there yet; evidence that it carries is stored either way."""
    bare = plan if plan.evidence is None else plan.model_copy(update={"evidence": None})
    return insert_document(session, plan, bare.model_dump_json(), plan.evidence)


def insert_document(
    session: Session, plan: Plan | PlanDocument, document: str, evidence: dict[str, Any] | None = None
) -> StoredPlan:
    """`insert_plan`, of a plan that is written already: `document` is `plan` without evidence."""
    evidence_text = None if evidence is None else json.dumps(evidence)
    summary = summary_of(plan)
    new = insert_new(
        session,
        PlanRow,
        id=summary.id,
        model=summary.model,
        target=summary.target,
        metric=summary.metric,
        budget=summary.budget,
        bytes=summary.bytes,
        loss=summary.loss,
        stored_bits_per_weight=summary.stored_bits_per_weight,
        **_measured(evidence),
        render_fingerprint=plan.provenance.render_fingerprint,
        created_at=timestamp(),
        summary=summary.model_dump_json(),
    )
    if new:
        insert_new(session, PlanDocumentRow, id=summary.id, document=document, evidence=evidence_text)
        return StoredPlan(summary.id, document, evidence_text, new=True)
    if evidence is not None:
        set_evidence(session, summary.id, evidence)
    found = _read(session, summary.id)
    if found is None:  # deleted between the two statements
        return insert_document(session, plan, document, evidence)
    return found


def read_plan(session: Session, prefix: str) -> StoredPlan:
    identity = find_plan(session, prefix)
    found = _read(session, identity)
    if found is None:
        raise NotFound(f"the plan {identity[:16]} has just been deleted; the same request makes it again")
    return found


def _read(session: Session, plan_id: str) -> StoredPlan | None:
    columns = (PlanDocumentRow.document, PlanDocumentRow.evidence)
    row = session.execute(select(*columns).where(PlanDocumentRow.id == plan_id)).one_or_none()
    return None if row is None else StoredPlan(plan_id, row.document, row.evidence)


def find_plan(session: Session, prefix: str) -> str:
    return found_id(session, PlanRow.id, "plan", prefix)


def set_evidence(session: Session, plan_id: str, evidence: dict[str, Any]) -> None:
    session.execute(update(PlanDocumentRow).where(PlanDocumentRow.id == plan_id).values(evidence=json.dumps(evidence)))
    session.execute(update(PlanRow).where(PlanRow.id == plan_id).values(_measured(evidence)))


def delete_plan(session: Session, plan_id: str) -> None:
    session.execute(delete(PlanRow).where(PlanRow.id == plan_id))
    session.execute(delete(PlanDocumentRow).where(PlanDocumentRow.id == plan_id))


def list_plans(
    session: Session, filters: list[ColumnElement[bool]], sort: str, cursor: str | None, limit: int
) -> ListView[PlanSummary]:
    query = select(*SUMMARY).where(*filters)
    rows, following = page(session, query, chosen_order(sort, SORTS, PlanRow.number), cursor, limit)
    return ListView(items=[summary_from(*row[: len(SUMMARY)]) for row in rows], next_cursor=following)


def summary_from(summary: str, verified: bool | None, measured_loss: float | None) -> PlanSummary:
    """Out of the columns SUMMARY."""
    return PlanSummary.model_validate({**json.loads(summary), "verified": verified, "measured_loss": measured_loss})


def summary_of(plan: Plan | PlanDocument) -> PlanSummary:
    return PlanSummary(
        id=plan.id,
        model=plan.model.id,
        target=plan.target,
        budget=plan.budget.text,
        limit_bytes=plan.budget.limit_bytes,
        bytes=plan.predicted.bytes.total,
        loss=plan.predicted.loss,
        stderr=plan.predicted.stderr,
        quantity=plan.predicted.quantity,
        metric=plan.provenance.metric,
        stored_bits_per_weight=plan.predicted.stored_bits_per_weight,
        created_at=plan.provenance.created_at,
        verified=None,
    )


def _measured(evidence: dict[str, Any] | None) -> dict[str, Any]:
    """What lists show of the evidence."""
    if evidence is None:
        return {"verified": None, "measured_loss": None}
    measured = (evidence.get("loss") or {}).get("measured")
    return {"verified": bool(evidence.get("passed")), "measured_loss": None if measured is None else float(measured)}
