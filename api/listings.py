"""Lists that the command line prints: plans, jobs, the plans of a sweep, keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import wording
from .bars import STAGES

if TYPE_CHECKING:
    from .client import Sweep
    from .schema import JobView, KeyView, PlanSummary
    from .store.retention import GarbageReport


def plans_table(plans: list[PlanSummary]) -> Table:
    """Stored plans, one a line."""
    table = _table("plan", "model", "target", "budget>", "size>", "loss>", "measured")
    for plan in plans:
        sizes = (plan.budget, wording.size(plan.bytes), wording.loss(plan.loss, plan.stderr))
        table.add_row(plan.id[:12], plan.model, plan.target, *sizes, wording.MEASURED[plan.verified])
    return table


def jobs_table(jobs: Sequence[JobView]) -> Table:
    """Jobs, one a line."""
    table = _table("job", "kind", "status", "how far", "asked for", "by")
    for job in jobs:
        table.add_row(job.id, job.kind, job.status, _how_far(job), job.created_at, job.owner)
    return table


def job_page(job: JobView) -> Group:
    """One job: what was asked for, how far it is, what came of it."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("status", f"{job.status}, attempt {job.attempt}" if job.attempt else job.status)
    for name, value in job.input.items():
        if value not in (None, "", False, {}):
            facts.add_row(name, Text(str(value)))
    for name, moment in (("asked for", job.created_at), ("begun", job.started_at), ("ended", job.finished_at)):
        if moment is not None:
            facts.add_row(name, moment)
    if not job.finished:
        facts.add_row("how far", _how_far(job))
    if job.error is not None:
        facts.add_row("error", Text(job.error.detail, "red"))
    for name, value in (job.result or {}).items():
        facts.add_row(name, Text(str(value)))
    head = Text.assemble(("Job ", "bold"), (job.id, "bold cyan"), f"  {job.kind}")
    return Group(head, Text(), Padding(facts, (0, 2), expand=False))


def sweep_table(sweep: Sweep) -> Table:
    """The plans of a sweep, one a line; one that could not be made with its reason."""
    table = _table("plan", "model", "metric", "target", "budget>", "size>", "loss>", "measured")
    for row in sweep.rows:
        where = (row.model, row.metric, row.target, row.budget)
        if row.plan is not None:
            loss = wording.loss(row.plan.loss, row.plan.stderr)
            table.add_row(row.plan.id[:12], *where, wording.size(row.plan.bytes), loss, wording.MEASURED[row.plan.verified])
        else:
            table.add_row("", *where, "", "", Text(row.error.detail if row.error else row.status, "red"))
    return table


def keys_table(keys: Sequence[KeyView]) -> Table:
    """Keys, one a line."""
    table = _table("key", "name", "scope", "begins with", "made", "good until", "last used")
    for key in keys:
        until = "revoked" if key.revoked else key.expires_at or "revoked by hand"
        table.add_row(key.id, key.name, key.scope, key.prefix, key.created_at, until, key.last_used_at or "never")
    return table


def garbage_table(report: GarbageReport) -> Group:
    """What was deleted, or would be, kind by kind."""
    table = _table("what", "how many>", "size>")
    for kind, freed in sorted(report.freed.items()):
        table.add_row(kind, f"{freed.count:,}", wording.size(freed.bytes) if freed.bytes else "")
    verb = "would be freed" if report.dry_run else "freed"
    return Group(table, Text(f"{wording.size(report.bytes)} {verb}" if report.freed else "nothing to delete"))


def _how_far(job: JobView) -> str:
    if job.progress is None or job.finished:
        return ""
    return f"{STAGES.get(job.progress.stage, job.progress.stage)}, {100 * job.progress.fraction:.0f} %"


def _table(*names: str) -> Table:
    """Columns by name; one whose name ends in ">" is set to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in names:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left")
    return table
