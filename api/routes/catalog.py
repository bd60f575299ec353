"""What can be asked for: models known, metrics, solvers, formats, targets, the plan's schema, the types of problems."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Response

from ... import allocator
from ..depends import JOB_RESPONSE, SettingsDep, StoreDep, as_response, job_reply
from ..planning import summary_of
from ..problems import OTHER_PROBLEMS, PREFIX, PROBLEMS
from ..schema import InspectBody, ListView, Named

router = APIRouter(tags=["catalog"])
EXAMPLE_SHAPE = (4096, 4096)


@router.get("/inventory", operation_id="inventory_get", responses=JOB_RESPONSE)
def inventory(model: str, store: StoreDep, settings: SettingsDep) -> Response:
    """What is in a model: units, shapes, what no plan touches. 202 and a job when it was never inspected."""
    found = allocator.known_inventory(model, settings.home)
    if found is None:
        return as_response(job_reply(store.jobs.submit("inspect", InspectBody(model=model).model_dump())))
    store.put_inventory(found)
    return Response(json.dumps(found.to_json()), media_type="application/json")


@router.get("/metrics", operation_id="metrics_list")
def metrics() -> ListView[Named]:
    """Rules that estimate how much a unit minds a format."""
    return ListView(items=[Named(name=name, summary=text) for name, text in allocator.METRIC_SUMMARIES.items()])


@router.get("/solvers", operation_id="solvers_list")
def solvers() -> ListView[Named]:
    """Ways to choose."""
    return ListView(items=[Named(name=name, summary=summary_of(solve)) for name, solve in allocator.SOLVERS.items()])


@router.get("/targets", operation_id="targets_list")
def targets() -> ListView[Named]:
    """Engines that a plan can be made for."""
    return ListView(items=[Named(name=name, summary=summary_of(target)) for name, target in allocator.TARGETS.items()])


@router.get("/formats", operation_id="formats_list")
def formats() -> ListView[Named]:
    """Ways to store a weight; `bits_per_weight` is stored bits, scales and padding counted, of a 4096 x 4096 matrix."""
    return ListView(items=[_format(name) for name in allocator.FORMATS])


@router.get("/schemas/plan", operation_id="schemas_plan")
def plan_schema() -> dict[str, Any]:
    """JSON Schema of the plan document."""
    return allocator.Plan.model_json_schema()


@router.get("/problems", operation_id="problems_list")
def problems() -> ListView[Named]:
    """Types of problem details that this service answers with."""
    kinds = {kind.slug: (kind, summary_of(error)) for error, kind in PROBLEMS.items()}
    kinds |= {slug: (kind, kind.title) for slug, kind in OTHER_PROBLEMS.items()}
    return ListView(
        items=[
            Named.model_validate({"name": PREFIX + slug, "summary": text, "title": kind.title, "status": kind.status})
            for slug, (kind, text) in kinds.items()
        ]
    )


def _format(name: str) -> Named:
    fmt = allocator.FORMATS[name]
    if fmt.family == "float":
        summary = f"each weight as a {fmt.bits}-bit float"
    else:
        group = "a whole row" if fmt.group_size is None else f"{fmt.group_size} inputs"
        zero = "no zero point" if fmt.symmetric else "a zero point"
        summary = f"{fmt.bits}-bit codes, one fp16 scale and {zero} for {group}"
    return Named.model_validate(
        {
            "name": name,
            "summary": summary,
            "family": fmt.family,
            "bits": fmt.bits,
            "group_size": fmt.group_size,
            "symmetric": fmt.symmetric,
            "bits_per_weight": fmt.bits_per_weight(EXAMPLE_SHAPE),
        }
    )
