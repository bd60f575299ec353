"""One plan: where its bits go, what it promises and what was measured, how it is proved, made again and exported."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ..depends import ArtifactsDep, JobsDep, StoreDep
from ..exporting import EXPORTS
from ..report import plan_context
from ..routes import exports
from ..schema import PlanBody
from ..wording import price_per_mib
from .asking import Ask
from .charts import frontier_chart
from .forms import Form
from .page import page, see_other
from .stored import alike_points, profile_of

if TYPE_CHECKING:
    from ...allocator import Plan
    from ..jobs.queue import Jobs
    from ..schema import JobView

router = APIRouter()
PARTS = {
    "codes": "the weights' codes",
    "scales": "scales of the codes",
    "zeros": "zero points",
    "native": "units kept as floats",
    "fixed": "tensors that no plan touches",
}


@router.get("/plans/{plan_id}")
def show(plan_id: str, request: Request, store: StoreDep, jobs: JobsDep, artifacts: ArtifactsDep, unit: str = "") -> HTMLResponse:
    """The plan; with `unit`, also what is known of that unit, for browsers without scripts."""
    plan = store.plan(plan_id)
    profile = profile_of(plan, store)
    context = plan_context(plan, plan.evidence, profile)
    points = alike_points(plan, store)
    return page(
        request,
        "plan.html",
        section="Plans",
        **context,
        unit=context["facts"].get(unit),
        has_profile=profile is not None,
        price=price_per_mib(plan),
        parts=byte_parts(plan),
        chart=frontier_chart([(p["bytes"], p["loss"]) for p in plan.frontier()], points, plan.predicted.quantity),
        jobs=_jobs_of(plan.id, jobs),
        exports=exports.index(plan.id, store, artifacts).items,
        export_kinds=EXPORTS,
        python=python_lines(plan, str(request.base_url)),
        curl=curl_lines(plan, str(request.base_url)),
    )


@router.post("/plans/{plan_id}/verify")
async def verify(plan_id: str, ask: Ask) -> RedirectResponse:
    """Have the plan measured, and go back to watch."""
    await ask(f"/v1/plans/{quote(plan_id, safe='')}/verify")
    return see_other(f"/plans/{plan_id}#jobs")


@router.post("/plans/{plan_id}/exports")
async def export(plan_id: str, form: Form, ask: Ask) -> RedirectResponse:
    """Have the plan's files written, and go back to watch."""
    await ask(f"/v1/plans/{quote(plan_id, safe='')}/exports", {"to": form.get("to", "")})
    return see_other(f"/plans/{plan_id}#jobs")


def byte_parts(plan: Plan) -> list[dict[str, Any]]:
    """The plan's bytes by what they are, largest part first; `before` is where a part begins on a bar of length 1."""
    total = plan.predicted.bytes.total
    counts = sorted(((getattr(plan.predicted.bytes, name), name) for name in PARTS), reverse=True)
    parts, before = [], 0
    for count, name in counts:
        if count:
            share, start = count / total, before / total
            parts.append({"name": name, "text": PARTS[name], "bytes": count, "share": share, "before": start})
        before += count
    return parts


def request_of(plan: Plan) -> dict[str, Any]:
    """The body of a POST that makes the plan again; what is left out has its default."""
    provenance, latency = plan.provenance, plan.budget.latency
    settings = {name: provenance.settings.get(name) for name in ("tokens", "calibration", "formats")}
    said = {
        "target": plan.target,
        "metric": provenance.metric,
        "seed": provenance.seed,
        "rounding": provenance.rounding,
        "pins": plan.pins,
        "latency_ms": None if latency is None else latency.limit_ms,
        "latency_device": None if latency is None else latency.device,
        **settings,
    }
    defaults = {name: field.get_default(call_default_factory=True) for name, field in PlanBody.model_fields.items()}
    changed = {name: value for name, value in said.items() if value is not None and value != defaults[name]}
    return {"model": plan.model.id, "budget": plan.budget.text, **changed}


def python_lines(plan: Plan, base: str) -> str:
    body = request_of(plan)
    first = [repr(body.pop("model")), f"budget={body.pop('budget')!r}"]
    arguments = ", ".join(first + [f"{name}={value!r}" for name, value in body.items()])
    return "\n".join(
        (
            "from bitplan import Client",
            "",
            f"client = Client({base.rstrip('/')!r})",
            f"plan = client.allocate({arguments})",
            f"assert plan.id == {plan.id!r}",
        )
    )


def curl_lines(plan: Plan, base: str) -> str:
    body = shlex.quote(json.dumps(request_of(plan), ensure_ascii=False))
    return f"curl {shlex.quote(base + 'v1/plans')} \\\n  -H 'content-type: application/json' \\\n  -d {body}"


def _jobs_of(plan_id: str, jobs: Jobs) -> list[JobView]:
    """Work on this plan that is not finished, and what failed last."""
    found = [job for job in jobs.list(limit=50).items if job.input.get("plan_id") == plan_id]
    return [job for job in found if not job.finished] or [job for job in found[:1] if job.status == "failed"]
