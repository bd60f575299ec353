"""What is done with a plan that there is: execute, export, verify, list, show, diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Device, PlanText, Server, show

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the quantized model to.")]


def execute(plan: PlanText, out: Out, device: Device = "auto", server: Server = None, as_json: AsJson = False) -> None:
    """Write the quantized model, loadable again with bitplan."""
    export(plan, out, "bitplan", device, server, as_json)


def export(
    plan: PlanText,
    out: Out,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="Whose files to write; bitplan is what `bitplan execute` writes.")],
    device: Device = "auto",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Write the files that an engine loads."""
    from .. import bars
    from ..exporting import check_export
    from .place import place

    check_export(to)
    with place(server) as here, bars.progress_bars() as tell:
        found = here.find(plan)
        here.export(found, out, to, device, tell)
    count = found.predicted.bytes.total
    show(
        {"plan_id": found.id, "folder": str(out), "bytes": count}
        if as_json
        else f"{out}: {found.model.id} with {count:,} bytes of weights, as plan {found.id[:12]} says"
    )


def verify(
    plan: PlanText,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure on this; default: kept back from calibration.")
    ] = None,
    device: Device = "auto",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Promise against fact: bytes, kernels, loss, and the uniform rival."""
    from .. import bars, terminal
    from .place import place

    with place(server) as here:
        found = here.find(plan)
        with bars.progress_bars() as tell:
            report = here.verify(found, data, device, tell)
    show(report if as_json else terminal.evidence_table(found, report))
    if not report["passed"]:
        raise typer.Exit(4)


def list_plans(
    model: Annotated[str | None, typer.Option(help="Only plans of this model.")] = None,
    target: Annotated[str | None, typer.Option(help="Only plans for this engine.")] = None,
    metric: Annotated[str | None, typer.Option(help="Only plans by this metric.")] = None,
    budget: Annotated[str | None, typer.Option(help="Only plans for this budget, as it was written.")] = None,
    verified: Annotated[
        bool | None, typer.Option("--verified/--broken", help="Only plans that kept their promise when measured, or did not.")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="created_at, bytes, loss or stored_bits_per_weight; with - before it the largest first.")
    ] = "-created_at",
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 50,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Stored plans, newest first."""
    from .. import listings
    from .place import place

    with place(server) as here:
        found = here.plans(model=model, target=target, metric=metric, budget=budget, verified=verified, sort=sort, limit=limit)
    show(found.model_dump() if as_json else listings.plans_table(found.items))


def show_plan(plan: PlanText, server: Server = None, as_json: AsJson = False) -> None:
    """One plan with its bit map, layer by layer."""
    from .. import terminal
    from .place import place

    with place(server) as here:
        found = here.find(plan)
    show(json.loads(found.to_json()) if as_json else terminal.plan_page(found))


def diff(
    a: PlanText,
    b: Annotated[str, typer.Argument(metavar="PLAN", help="Another plan of the same model.")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """The units in which two plans differ, with bytes and loss."""
    from .. import terminal
    from ..compare import compare_plans
    from .place import place

    with place(server) as here:
        difference = compare_plans(here.find(a), here.find(b))
    show(difference if as_json else terminal.diff_table(difference))
