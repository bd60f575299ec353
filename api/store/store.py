"""Store: plans, profiles and inventories, put once and got back as they were.

The contract, which `tests/contracts/test_store_contract.py` holds every kind of store to:

- What comes out equals what went in.
- Putting twice is putting once. The first document of an id stays; only a plan's `evidence` is replaced, by newer evidence.
- A list is newest first, or sorted as asked, in pages; what is put while someone pages through it disturbs no page.
- An id may be given as any prefix that only one stored thing has.
- Any number of threads and processes may use one store at once; a process killed at any moment leaves it whole.
- Missing things raise NotFound; ambiguous prefixes, forged cursors and text that no database holds raise UsageError.
- A database that is away raises StoreUnavailable, once the patience it was opened with is spent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from ...allocator.errors import NotFound
from ..schema import ListView, ModelView, PlanSummary, ProfileBody, ProfileSummary
from . import plans as rows_of_plans
from .database import Database, insert_new, patient
from .finding import found_id
from .jobs import JobRows
from .keys import Keys
from .models import inventory_summary, list_models
from .paging import Order, page
from .plans import StoredPlan
from .replies import Replies
from .sessions import Sessions
from .sweeps import Sweeps
from .tables import InventoryRow, PlanRow, ProfileRow, timestamp
from .workers import Workers

if TYPE_CHECKING:
    from ...allocator import Inventory, Plan, SensitivityReport
    from ...allocator.document import PlanDocument


class Store:
    """All that is kept, each kind of thing in a part of its own over the same database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.jobs = JobRows(database)
        self.sweeps = Sweeps(database)
        self.keys = Keys(database)
        self.sessions = Sessions(database)
        self.workers = Workers(database)
        self.replies = Replies(database)

    @classmethod
    def open(cls, url: str, patience_seconds: float = 0.0) -> Store:
        """`patience_seconds` is how long each call goes on trying while the database is away."""
        return cls(Database(url, patience_seconds))

    def close(self) -> None:
        self.database.close()

    # Plans

    def put_plan(self, plan: Plan) -> bool:
        """Keep a plan; true when it is new. Evidence that the document carries is attached."""
        return self.keep_plan(plan).new

    @patient
    def keep_plan(self, plan: Plan) -> StoredPlan:
        """Keep a plan, in one transaction, and hand back what is stored under its id."""
        with self.database.write(durable=False) as session:
            return rows_of_plans.insert_plan(session, plan)

    @patient
    def keep_document(self, plan: PlanDocument) -> StoredPlan:
        """`keep_plan`, of a plan that is written already."""
        with self.database.write(durable=False) as session:
            return rows_of_plans.insert_document(session, plan, plan.text)

    @patient
    def attach_evidence(self, plan_id: str, evidence: dict[str, Any]) -> None:
        """Put measured facts beside a plan, in place of older ones."""
        with self.database.write() as session:
            rows_of_plans.set_evidence(session, rows_of_plans.find_plan(session, plan_id), evidence)

    def plan(self, plan_id: str) -> Plan:
        return self.stored_plan(plan_id).plan()

    @patient
    def stored_plan(self, plan_id: str) -> StoredPlan:
        """The plan's documents as text: what a reader over HTTP needs."""
        with self.database.read() as session:
            return rows_of_plans.read_plan(session, plan_id)

    @patient
    def plans(
        self,
        model: str | None = None,
        target: str | None = None,
        metric: str | None = None,
        budget: str | None = None,
        verified: bool | None = None,
        sort: str = "-created_at",
        cursor: str | None = None,
        limit: int = 50,
    ) -> ListView[PlanSummary]:
        """One page of plans. `sort` is created_at, bytes, loss or stored_bits_per_weight, with a minus for descending;
        `budget` is compared as the text it was asked for with. Raises UsageError, UnknownName."""
        asked = {
            PlanRow.model: model,
            PlanRow.target: target,
            PlanRow.metric: metric,
            PlanRow.budget: budget,
            PlanRow.verified: verified,
        }
        filters = [column == value for column, value in asked.items() if value is not None]
        with self.database.read() as session:
            return rows_of_plans.list_plans(session, filters, sort, cursor, limit)

    @patient
    def delete_plan(self, plan_id: str) -> None:
        with self.database.write() as session:
            rows_of_plans.delete_plan(session, rows_of_plans.find_plan(session, plan_id))

    # Profiles and inventories

    @patient
    def put_profile(self, report: SensitivityReport, body: ProfileBody) -> bool:
        """Keep a report with the request that leads to it, over all its formats; true when it is new."""
        with self.database.read() as session:
            if session.scalar(select(ProfileRow.number).where(ProfileRow.id == report.id)) is not None:
                return False
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
        request = body.model_copy(update={"formats": report.formats})
        with self.database.write() as session:
            return insert_new(
                session,
                ProfileRow,
                id=report.id,
                model=body.model,
                created_at=summary.created_at,
                request=request.model_dump_json(),
                summary=summary.model_dump_json(),
                document=json.dumps(report.to_json()),
            )

    @patient
    def profile(self, profile_id: str) -> tuple[SensitivityReport, ProfileBody]:
        from ...allocator import SensitivityReport

        with self.database.read() as session:
            identity = found_id(session, ProfileRow.id, "profile", profile_id)
            columns = (ProfileRow.document, ProfileRow.request)
            row = session.execute(select(*columns).where(ProfileRow.id == identity)).one()
        return SensitivityReport.from_json(json.loads(row.document)), ProfileBody.model_validate_json(row.request)

    @patient
    def profiles(self, model: str | None = None, cursor: str | None = None, limit: int = 50) -> ListView[ProfileSummary]:
        query = select(ProfileRow.summary)
        if model is not None:
            query = query.where(ProfileRow.model == model)
        with self.database.read() as session:
            rows, following = page(session, query, Order.newest(ProfileRow.number), cursor, limit)
        return ListView(items=[ProfileSummary.model_validate_json(row.summary) for row in rows], next_cursor=following)

    @patient
    def put_inventory(self, inventory: Inventory) -> bool:
        """Keep an inventory; true when it is new."""
        with self.database.read() as session:
            known = select(InventoryRow.number).where(InventoryRow.fingerprint == inventory.fingerprint)
            if session.scalar(known) is not None:
                return False
        with self.database.write() as session:
            return insert_new(
                session,
                InventoryRow,
                fingerprint=inventory.fingerprint,
                model=inventory.model_id,
                created_at=timestamp(),
                summary=json.dumps(inventory_summary(inventory)),
                document=json.dumps(inventory.to_json()),
            )

    @patient
    def inventory(self, fingerprint: str) -> Inventory:
        from ...allocator import Inventory

        with self.database.read() as session:
            document = session.scalar(select(InventoryRow.document).where(InventoryRow.fingerprint == fingerprint))
        if document is None:
            raise NotFound(f"no inventory {fingerprint[:12]!r} is stored; inspect the model again")
        return Inventory.from_json(json.loads(document))

    @patient
    def models(self) -> list[ModelView]:
        """The models that were inspected, the one used last first."""
        with self.database.read() as session:
            return list_models(session)
