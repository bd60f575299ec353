"""Plans: made, read, compared, verified, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from ...allocator import Plan
from ..schema import JobView, ListView, PlanBody, PlanSummary
from .asking import all_pages, ask, body, document, id_of, page, read, shaped
from .jobs import Watch, job, result, taken_up
from .profiles import Measuring
from .talk import Flow, Talk


class Planning(Measuring, total=False):
    """Options of a plan, named as in the API: `latency_ms` is a second limit, `verify` measures the plan once it is made."""

    target: str
    solver: str
    pins: Mapping[str, str] | None
    latency_ms: float | None
    latency_device: str | None
    verify: bool


def submit(model: str, budget: str, **options: Unpack[Planning]) -> Talk[Plan | JobView]:
    """Ask for the plan for a budget: the plan where the service has measured the model before, else the job that does."""
    reply = yield from ask("POST", "/v1/plans", _body(model, budget, options))
    return taken_up(reply) if reply.status_code == 202 else shaped(Plan, document(reply))


def allocate(model: str, budget: str, *, watch: Watch | None = None, **options: Unpack[Planning]) -> Talk[Plan]:
    """The plan for a budget. Where the service has to measure first this waits for its job, calling `watch` with each
    state of it. Raises Infeasible with the smallest and largest bytes that can be met."""
    reply = yield from ask("POST", "/v1/plans", _body(model, budget, options))
    if reply.status_code == 202:
        made = yield from result(taken_up(reply), watch)
        return (yield from plan(made["plan_id"]))
    found = shaped(Plan, document(reply))
    verification = reply.links.get("related", {}).get("url")
    if verification is None:
        return found
    yield from result((yield from job(verification.rpartition("/")[2])), watch)
    return (yield from plan(found.id))


def plans(
    *,
    model: str | None = None,
    target: str | None = None,
    metric: str | None = None,
    budget: str | None = None,
    verified: bool | None = None,
    sort: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Talk[ListView[PlanSummary]]:
    """One page of stored plans, newest first unless `sort` names created_at, bytes, loss or stored_bits_per_weight, with a
    leading "-" for the largest first."""
    asked = {"model": model, "target": target, "metric": metric, "budget": budget, "verified": verified, "sort": sort}
    return page(PlanSummary, "/v1/plans", {**asked, "cursor": cursor, "limit": limit})


def all_plans(
    *,
    model: str | None = None,
    target: str | None = None,
    metric: str | None = None,
    budget: str | None = None,
    verified: bool | None = None,
    sort: str | None = None,
) -> Flow[PlanSummary]:
    """Every stored plan that fits; pages are fetched as they are needed."""
    return all_pages(
        lambda cursor: plans(
            model=model, target=target, metric=metric, budget=budget, verified=verified, sort=sort, cursor=cursor, limit=200
        )
    )


def plan(plan_id: str) -> Talk[Plan]:
    """A stored plan, by its id or a unique prefix."""
    return shaped(Plan, (yield from read(f"/v1/plans/{id_of(plan_id)}", patient=True)))


def delete(plan: Plan | str) -> Talk[None]:
    """Forget a stored plan."""
    yield from ask("DELETE", f"/v1/plans/{id_of(plan)}")


def diff(a: Plan | str, b: Plan | str) -> Talk[dict[str, Any]]:
    """The units in which two plans differ, with bytes and loss."""
    return read(f"/v1/plans/{id_of(a)}/diff/{id_of(b)}")


def certificate(plan: Plan | str) -> Talk[dict[str, Any]]:
    """The whole choice problem as integers, the choice and the multiplier: what a stranger needs to check the plan."""
    return read(f"/v1/plans/{id_of(plan)}/certificate")


def verify(plan_or_id: Plan | str, *, watch: Watch | None = None) -> Talk[dict[str, Any]]:
    """Measure a stored plan: an ExecutionReport as JSON, whose `passed` says whether the promise was kept."""
    reply = yield from ask("POST", f"/v1/plans/{id_of(plan_or_id)}/verify")
    yield from result(taken_up(reply), watch)
    evidence = (yield from plan(id_of(plan_or_id))).evidence
    assert evidence is not None
    return evidence


def _body(model: str, budget: str, options: Planning) -> dict[str, Any]:
    pins = dict(options.get("pins") or {})
    return body(PlanBody, {"model": model, "budget": budget, **options, "pins": pins})
