"""`bitplan sweep`: many plans in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Calibration, Device, Formats, Rounding, Seed, Server, Solver, Stream, Tokens, show


def sweep(
    model: Annotated[list[str], typer.Option(help="Hub name, folder, .gguf file or alias; may be repeated.")],
    budget: Annotated[list[str], typer.Option(help="What may be spent: 60MiB, 3.25bpw, 40%; may be repeated.")],
    target: Annotated[list[str] | None, typer.Option(help="Engine to plan for; may be repeated; default: native.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Rule to estimate by; may be repeated; default: kl_fisher.")] = None,
    solver: Solver = "best",
    formats: Formats = None,
    calibration: Calibration = None,
    tokens: Tokens = 4096,
    seed: Seed = 0,
    rounding: Rounding = "gptq",
    stream: Stream = False,
    device: Device = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Measure every plan once it is made.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="With --server: begin anew though this sweep has ended well.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write the table there.")] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """A plan for every model, metric, target and budget; the same command goes on where it was interrupted."""
    from .. import arguments, bars, listings
    from ..problems import error_of, kind_of
    from ..schema import SweepBody
    from .place import place

    body = arguments.checked(
        SweepBody,
        models=model,
        budgets=budget,
        targets=target or ["native"],
        metrics=metric or ["kl_fisher"],
        solver=solver,
        formats=arguments.palette(formats),
        calibration=None if calibration is None else str(calibration),
        tokens=tokens,
        seed=seed,
        rounding=rounding,
        stream=stream,
        device=device,
        verify=verify,
    )
    with place(server) as here, bars.progress_bars() as tell:
        found = here.sweep(body, fresh, tell)
    if out is not None:
        found.to_csv(out)
    show({"id": found.id, "rows": [row.model_dump() for row in found.rows]} if as_json else listings.sweep_table(found))
    if not found.plans:
        failed = found.rows[0].error
        assert failed is not None
        raise typer.Exit(kind_of(error_of(failed.model_dump())).exit_status)
