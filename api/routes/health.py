"""Health, readiness and numbers for a monitoring system."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import PlainTextResponse

from ..depends import StoreDep

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="readyz")
def readyz(store: StoreDep) -> dict[str, str]:
    """The store answers and a worker is alive."""
    if not store.worker_alive():
        raise HTTPException(503, "no worker has reported in the last 30 seconds; stored plans are served, jobs wait")
    return {"status": "ready"}


@router.get("/metrics", operation_id="prometheus", response_class=PlainTextResponse)
def metrics(store: StoreDep) -> str:
    """Prometheus text exposition."""
    lines = ["# HELP bitplan_jobs Jobs by kind and status.", "# TYPE bitplan_jobs gauge"]
    for (kind, status), count in sorted(store.jobs.counts().items()):
        lines.append(f'bitplan_jobs{{kind="{kind}",status="{status}"}} {count}')
    lines += ["# HELP bitplan_worker_up Whether a worker has reported lately.", "# TYPE bitplan_worker_up gauge"]
    lines.append(f"bitplan_worker_up {int(store.worker_alive())}")
    return "\n".join(lines) + "\n"
