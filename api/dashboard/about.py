"""The API's own page: where it is described, and what can be asked for."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ..routes import catalog
from .page import page

router = APIRouter()
DOCUMENTS = (
    ("/openapi.json", "every route, its parameters and its answers, as OpenAPI 3.1"),
    ("/v1/schemas/plan", "JSON Schema of the plan document"),
    ("/v1/metrics", "metrics: rules that estimate how much a unit minds a format"),
    ("/v1/solvers", "solvers"),
    ("/v1/targets", "targets: engines that a plan can be made for"),
    ("/v1/formats", "formats: ways to store a weight"),
    ("/v1/problems", "types of problem details"),
    ("/readyz", "whether the service can take work"),
    ("/metrics", "numbers for Prometheus"),
)


@router.get("/about")
def about(request: Request) -> HTMLResponse:
    """Links and lists."""
    return page(
        request,
        "about.html",
        section="API",
        version=request.app.version,
        base=str(request.base_url).rstrip("/"),
        documents=DOCUMENTS,
        lists={"Targets": catalog.targets().items, "Metrics": catalog.metrics().items, "Solvers": catalog.solvers().items},
    )
