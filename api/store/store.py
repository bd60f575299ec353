"""Store: plans, profiles and inventories, put once and got back as they were.

The contract, which `tests/contracts/test_store_contract.py` holds every kind of store to:

- What comes out equals what went in.
- Putting twice is putting once. The first document of an id stays; only a plan's `evidence` is replaced, by newer evidence.
- A list is newest first, in pages; what is put while someone pages through it disturbs no page.
- An id may be given as any prefix that only one stored thing has.
- Any number of threads and processes may use one store at once; a process killed at any moment leaves it whole.
- Missing things raise NotFound, ambiguous prefixes UsageError.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...allocator.errors import NotFound, UsageError
from ..schema import ListView, PlanSummary, ProfileBody, ProfileSummary
from .jobs import JobQueue
from .tables import Database, InventoryRow, MarkRow, PlanRow, ProfileRow, Row, page, timestamp

if TYPE_CHECKING:
    from ...allocator import Inventory, Plan, SensitivityReport


class Store:
    """All that is kept. `jobs` is the queue of work over the same database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.jobs = JobQueue(database)

    @classmethod
    def open(cls, url: str) -> Store:
        return cls(Database(url))

    def close(self) -> None:
        self.database.close()

    # Plans

    def put_plan(self, plan: Plan) -> bool:
        """Keep a plan; true when it is new. Evidence that the document carries is attached."""
        evidence = None if plan.evidence is None else json.dumps(plan.evidence)
        bare = plan.model_copy(update={"evidence": None})
        with self.database.write() as session:
            row = session.scalar(select(PlanRow).where(PlanRow.id == plan.id))
            if row is not None:
                row.evidence = evidence or row.evidence
                return False
            session.add(
                PlanRow(
                    id=plan.id,
                    model=plan.model.id,
                    target=plan.target,
                    created_at=timestamp(),
                    summary=_plan_summary(plan).model_dump_json(),
                    document=bare.model_dump_json(),
                    evidence=evidence,
                )
            )
            return True

    def attach_evidence(self, plan_id: str, evidence: dict[str, Any]) -> None:
        """Put measured facts beside a plan, in place of older ones."""
        with self.database.write() as session:
            _one(session, PlanRow, "plan", plan_id).evidence = json.dumps(evidence)

    def plan(self, plan_id: str) -> Plan:
        from ...allocator import Plan

        with self.database.read() as session:
            row = _one(session, PlanRow, "plan", plan_id)
        plan = Plan.from_json(row.document)
        evidence = None if row.evidence is None else json.loads(row.evidence)
        return plan.model_copy(update={"evidence": evidence})

    def plans(
        self, model: str | None = None, target: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> ListView[PlanSummary]:
        query = select(PlanRow)
        if model is not None:
            query = query.where(PlanRow.model == model)
        if target is not None:
            query = query.where(PlanRow.target == target)
        with self.database.read() as session:
            rows, following = page(session, PlanRow, query, cursor, limit)
            return ListView(items=[_with_verdict(row) for row in rows], next_cursor=following)

    def delete_plan(self, plan_id: str) -> None:
        with self.database.write() as session:
            session.delete(_one(session, PlanRow, "plan", plan_id))

    # Profiles and inventories

    def put_profile(self, report: SensitivityReport, body: ProfileBody) -> bool:
        """Keep a report with the request that leads to it, over all its formats; true when it is new."""
        summary = ProfileSummary(
            id=report.id,
            model=body.model,
            metric=report.metric,
            quantity=report.quantity,
            units=len(report.units),
            formats=list(report.formats),
            seconds=report.seconds,
            created_at=timestamp(),
        )
        with self.database.write() as session:
            if session.scalar(select(ProfileRow).where(ProfileRow.id == report.id)) is not None:
                return False
            session.add(
                ProfileRow(
                    id=report.id,
                    model=body.model,
                    created_at=summary.created_at,
                    request=body.model_copy(update={"formats": report.formats}).model_dump_json(),
                    summary=summary.model_dump_json(),
                    document=json.dumps(report.to_json()),
                )
            )
            return True

    def profile(self, profile_id: str) -> tuple[SensitivityReport, ProfileBody]:
        from ...allocator import SensitivityReport

        with self.database.read() as session:
            row = _one(session, ProfileRow, "profile", profile_id)
        return SensitivityReport.from_json(json.loads(row.document)), ProfileBody.model_validate_json(row.request)

    def profiles(self, model: str | None = None, cursor: str | None = None, limit: int = 50) -> ListView[ProfileSummary]:
        query = select(ProfileRow)
        if model is not None:
            query = query.where(ProfileRow.model == model)
        with self.database.read() as session:
            rows, following = page(session, ProfileRow, query, cursor, limit)
            return ListView(items=[ProfileSummary.model_validate_json(row.summary) for row in rows], next_cursor=following)

    def put_inventory(self, inventory: Inventory) -> bool:
        """Keep an inventory; true when it is new."""
        with self.database.write() as session:
            if session.scalar(select(InventoryRow).where(InventoryRow.fingerprint == inventory.fingerprint)) is not None:
                return False
            session.add(
                InventoryRow(
                    fingerprint=inventory.fingerprint,
                    model=inventory.model_id,
                    created_at=timestamp(),
                    document=json.dumps(inventory.to_json()),
                )
            )
            return True

    def inventory(self, fingerprint: str) -> Inventory:
        from ...allocator import Inventory

        with self.database.read() as session:
            row = session.scalar(select(InventoryRow).where(InventoryRow.fingerprint == fingerprint))
        if row is None:
            raise NotFound(f"no inventory {fingerprint[:12]!r} is stored; inspect the model again")
        return Inventory.from_json(json.loads(row.document))

    # The worker's sign of life

    def beat(self) -> None:
        """Say that a worker is alive now."""
        with self.database.write() as session:
            session.merge(MarkRow(name="heartbeat", value=timestamp()))

    def worker_alive(self, within_seconds: float = 30.0) -> bool:
        with self.database.read() as session:
            row = session.get(MarkRow, "heartbeat")
        return row is not None and row.value >= timestamp(seconds_ago=within_seconds)


def _one(session: Session, table: type[Row], what: str, prefix: str) -> Row:
    """The row whose id is, or alone begins with, `prefix`."""
    exact = session.scalar(select(table).where(table.id == prefix))
    if exact is not None:
        return exact
    query = select(table).where(table.id.startswith(prefix, autoescape=True)).limit(3)
    found = list(session.scalars(query)) if prefix else []
    if not found:
        raise NotFound(f"no {what} {prefix!r} is stored; `bitplan list` shows those that are")
    if len(found) > 1:
        some = ", ".join(row.id[:16] for row in found)
        raise UsageError(f"{prefix!r} begins the id of more than one {what} ({some}); give more of it")
    return found[0]


def _plan_summary(plan: Plan) -> PlanSummary:
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


def _with_verdict(row: PlanRow) -> PlanSummary:
    summary = PlanSummary.model_validate_json(row.summary)
    verified = None if row.evidence is None else bool(json.loads(row.evidence).get("passed"))
    return summary.model_copy(update={"verified": verified})
