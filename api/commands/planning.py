"""From a model to a plan: inspect, profile, spikes, plan, frontier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    AsJson,
    Calibration,
    Device,
    Formats,
    Metric,
    Model,
    Rounding,
    Seed,
    Server,
    Sibling,
    Solver,
    Stream,
    Target,
    Tokens,
    show,
)


def inspect(model: Model, stream: Stream = False, server: Server = None, as_json: AsJson = False) -> None:
    """Units, shapes, ties, sizes, and what would be left alone."""
    from .. import bars, terminal
    from ..schema import InspectBody
    from .place import place

    with place(server) as here, bars.progress_bars() as tell:
        inventory = here.inspect(InspectBody(model=model, stream=stream), tell)
    show(inventory.to_json() if as_json else terminal.inventory_table(inventory))


def profile(
    model: Model,
    metric: Metric = "kl_fisher",
    formats: Formats = None,
    calibration: Calibration = None,
    tokens: Tokens = 4096,
    seed: Seed = 0,
    rounding: Rounding = "gptq",
    until_stable: Annotated[
        str | None, typer.Option(metavar="BUDGET", help="Stop calibrating when the plan for this budget has stopped changing.")
    ] = None,
    stream: Stream = False,
    sibling: Sibling = None,
    device: Device = "auto",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much each unit minds each format; done once, reused for every budget."""
    from .. import arguments, bars, terminal
    from .place import place

    body = arguments.request_body(
        model,
        "100%",
        metric=metric,
        formats=formats,
        calibration=calibration,
        tokens=tokens,
        seed=seed,
        rounding=rounding,
        until_stable=until_stable,
        stream=stream,
        sibling=sibling,
        device=device,
    )
    with place(server) as here, bars.progress_bars() as tell:
        report = here.profile(body, tell)
    show(report.to_json() if as_json else terminal.profile_table(report, model))


def spikes(
    model: Model,
    calibration: Calibration = None,
    tokens: Tokens = 4096,
    seed: Seed = 0,
    threshold: Annotated[float, typer.Option(min=1, help="Largest input over the 0.999 quantile, above which to protect.")] = 20,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Units that are fed a few inputs far larger than all others, and the pins that leave them as they are."""
    from ...allocator.spiked import protecting_pins, spiked_units
    from .. import arguments, bars, terminal
    from .place import local_state

    body = arguments.request_body(model, "100%", formats=None, calibration=calibration, tokens=tokens, seed=seed, device=device)
    with local_state() as (settings, _), bars.progress_bars() as tell:
        found = spiked_units(body.profile_request(), home=settings.home, progress=tell)
    pins = protecting_pins(found, threshold)
    if as_json:
        units = [{"unit": spike.unit, "largest": spike.largest, "quantile": spike.quantile} for spike in found]
        show({"units": units, "pins": dict(pins)})
    else:
        show(terminal.spikes_table(found, pins))


def plan(
    model: Model,
    budget: Annotated[str, typer.Option(help="What may be spent: 60MiB, 3.25bpw, 40%.")],
    target: Target = "native",
    metric: Metric = "kl_fisher",
    solver: Solver = "best",
    pin: Annotated[list[str] | None, typer.Option(metavar="REGEX=FORMAT", help="Give units a format; may be repeated.")] = None,
    formats: Formats = None,
    calibration: Calibration = None,
    tokens: Tokens = 4096,
    seed: Seed = 0,
    rounding: Rounding = "gptq",
    until_stable: Annotated[
        bool, typer.Option("--until-stable", help="Stop calibrating when the plan has stopped changing.")
    ] = False,
    stream: Stream = False,
    sibling: Sibling = None,
    device: Device = "auto",
    latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Second limit: milliseconds of one decoding step at batch 1.")
    ] = None,
    latency_device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="NAME", help="Device whose latency table counts them; default: h100. Torch computes elsewhere."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan there as JSON.")] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """The best plan within a budget, with its proof."""
    from ...allocator.home import write_whole
    from .. import arguments, bars, terminal
    from .place import place

    body = arguments.request_body(
        model,
        budget,
        target=target,
        solver=solver,
        pins=arguments.read_pins(pin or []),
        metric=metric,
        formats=formats,
        calibration=calibration,
        tokens=tokens,
        seed=seed,
        rounding=rounding,
        until_stable=budget if until_stable else None,
        stream=stream,
        sibling=sibling,
        device=device,
        latency_ms=latency_ms,
        latency_device=latency_device,
    )
    with place(server) as here, bars.progress_bars() as tell:
        made = here.plan(body, tell)
    if out is not None:
        write_whole(out, made.to_json().encode())
    show(json.loads(made.to_json()) if as_json else terminal.plan_summary(made))


def frontier(
    model: Model,
    target: Target = "native",
    metric: Metric = "kl_fisher",
    formats: Formats = None,
    calibration: Calibration = None,
    tokens: Tokens = 4096,
    seed: Seed = 0,
    rounding: Rounding = "gptq",
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there: .csv, .html, .svg or .png.")] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """The best loss for every size."""
    from .. import arguments, bars, outputs, terminal
    from .place import place

    if out is not None:
        outputs.check_suffix(out)
    body = arguments.request_body(
        model,
        "100%",
        target=target,
        metric=metric,
        formats=formats,
        calibration=calibration,
        tokens=tokens,
        seed=seed,
        rounding=rounding,
        device=device,
    )
    with place(server) as here, bars.progress_bars() as tell:
        report, whole = here.whole_frontier(body, tell)
    points = whole.frontier()
    if out is not None:
        outputs.write_frontier(out, whole)
    document = {"profile_id": report.id, "model": model, "target": target, "quantity": report.quantity, "points": points}
    show(document if as_json else terminal.frontier_table(points, report.quantity))
