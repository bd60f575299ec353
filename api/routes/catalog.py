"""What can be asked for: models known, metrics, solvers, formats, targets, the plan's schema, the types of problems."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from ... import allocator
from ...allocator.errors import NotFound
from ..auth import PrincipalDep
from ..depends import JOB_RESPONSE, JobsDep, SettingsDep, StoreDep, as_response, job_reply
from ..planning import summary_of
from ..problems import OTHER_PROBLEMS, PREFIX, PROBLEMS
from ..schema import InspectBody, ListView, ModelView, Named, WorkerView
from ..settings import check_model

router = APIRouter(tags=["catalog"])
addresses = APIRouter()  # outside of /v1, since problems bear them as their types
ModelName = Annotated[str, Query(min_length=1, max_length=4096, description="hub name, folder, .gguf file or alias")]
EXAMPLE_SHAPE = (4096, 4096)


@router.get("/inventory", operation_id="inventory_get", responses=JOB_RESPONSE)
def inventory(model: ModelName, store: StoreDep, jobs: JobsDep, settings: SettingsDep, principal: PrincipalDep) -> Response:
    """What is in a model: units, shapes, what no plan touches. 202 and a job when it was never inspected."""
    check_model(model, settings)
    found = allocator.known_inventory(model, settings.home)
    if found is None:
        principal.need("plan", "have a model inspected for the first time")
        return as_response(job_reply(jobs.submit("inspect", InspectBody(model=model).model_dump(), owner=principal.name)))
    store.put_inventory(found)
    return Response(json.dumps(found.to_json()), media_type="application/json")


@router.get("/models", operation_id="models_list")
def models(store: StoreDep) -> ListView[ModelView]:
    """Models that were inspected, the one used last first, with what is stored of each."""
    return ListView(items=store.models())


@router.get("/workers", operation_id="workers_list")
def workers(store: StoreDep) -> ListView[WorkerView]:
    """Worker processes, and what each works on. A beat that stands still is a worker that may be gone."""
    return ListView(items=store.workers.list())


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
    return ListView(items=list(_problems().values()))


@addresses.get(PREFIX + "{name}", operation_id="problems_get", tags=["catalog"])
def problem(name: str) -> Named:
    """What a type of problem means: the address is the type itself."""
    known = _problems()
    if name not in known:
        raise NotFound(f"there is no problem of the type {PREFIX + name!r}; GET /v1/problems lists those that are")
    return known[name]


def _problems() -> dict[str, Named]:
    kinds = {kind.slug: (kind, summary_of(error)) for error, kind in PROBLEMS.items()}
    kinds |= {slug: (kind, kind.title) for slug, kind in OTHER_PROBLEMS.items()}
    return {
        slug: Named.model_validate({"name": PREFIX + slug, "summary": text, "title": kind.title, "status": kind.status})
        for slug, (kind, text) in kinds.items()
    }


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
