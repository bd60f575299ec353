"""The command line: `bitplan COMMAND ...`.

Results go to standard output, progress and sentences to standard error; with `--json` standard output is exactly one JSON
document, also when the command fails. Exit status: 0 done, 2 misuse or bad input, 3 infeasible budget, 4 verification
failed, 130 interrupted, 1 anything else. What is heavy is imported inside the commands, so that help comes at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from .settings import Settings
    from .store import Store

app = typer.Typer(
    help="Choose how many bits each part of a network gets, prove the choice, and measure that it keeps its promise.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help="Hub name, folder, .gguf file, or alias such as smollm2-135m.")]
PlanText = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's id, a unique prefix of it, or a file.")]
Metric = Annotated[str, typer.Option(help="Rule that estimates how much a unit minds a format.")]
Formats = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="The formats to choose among; default: the target's palette.")
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text file, folder of texts or of images; default: built-in text.")
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to measure on.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Rounding = Annotated[str, typer.Option(help="How weights are rounded: gptq, or nearest, which needs no data.")]
Stream = Annotated[bool, typer.Option("--stream", help="Keep one block of the model in memory at a time.")]
Sibling = Annotated[
    str | None, typer.Option(metavar="PROFILE", help="Take the losses of a smaller model's stored profile; measures nothing.")
]
Device = Annotated[
    str, typer.Option("--torch-device", metavar="NAME", help="Where torch computes: auto, cpu, cuda, cuda:1, mps, ...")
]
Target = Annotated[str, typer.Option(help="Engine that the plan must load in.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, everything else on standard error.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False) -> None:
    pass


@app.command()
def inspect(model: Model, stream: Stream = False, as_json: AsJson = False) -> None:
    """Units, shapes, ties, sizes, and what would be left alone."""
    from . import terminal
    from .jobs import work
    from .schema import InspectBody

    with _state() as (settings, store), terminal.progress_bars() as tell:
        inventory = work.inspect_model(store, settings.home, InspectBody(model=model, stream=stream), tell)
    _show(inventory.to_json() if as_json else terminal.inventory_table(inventory))


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Measure how much each unit minds each format; done once, reused for every budget."""
    from . import arguments, terminal
    from .jobs import work

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
    with _state() as (settings, store), terminal.progress_bars() as tell:
        report = work.profile_model(store, settings.home, body.profile(), tell)
    _show(report.to_json() if as_json else terminal.profile_table(report, model))


@app.command()
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
    from ..allocator.spiked import protecting_pins, spiked_units
    from . import arguments, terminal

    body = arguments.request_body(model, "100%", formats=None, calibration=calibration, tokens=tokens, seed=seed, device=device)
    with _state() as (settings, _), terminal.progress_bars() as tell:
        found = spiked_units(body.profile_request(), home=settings.home, progress=tell)
    pins = protecting_pins(found, threshold)
    if as_json:
        units = [{"unit": spike.unit, "largest": spike.largest, "quantile": spike.quantile} for spike in found]
        _show({"units": units, "pins": dict(pins)})
    else:
        _show(terminal.spikes_table(found, pins))


@app.command()
def plan(
    model: Model,
    budget: Annotated[str, typer.Option(help="What may be spent: 60MiB, 3.25bpw, 40%.")],
    target: Target = "native",
    metric: Metric = "kl_fisher",
    solver: Annotated[str, typer.Option(help="Way to choose.")] = "best",
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
    as_json: AsJson = False,
) -> None:
    """The best plan within a budget, with its proof."""
    from ..allocator.home import write_whole
    from . import arguments, terminal
    from .jobs import work

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
    with _state() as (settings, store), terminal.progress_bars() as tell:
        made = work.make_plan(store, settings.home, body, tell)
    if out is not None:
        write_whole(out, made.to_json().encode())
    _show(json.loads(made.to_json()) if as_json else terminal.plan_summary(made))


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """The best loss for every size."""
    from . import arguments, outputs, planning, terminal
    from .jobs import work

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
    with _state() as (settings, store), terminal.progress_bars() as tell:
        planning.check_body(body)
        report = work.profile_model(store, settings.home, body.profile(), tell)
        whole = planning.unlimited_plan(report.id, target, store)
    points = whole.frontier()
    if out is not None:
        outputs.write_frontier(out, whole)
    document = {"profile_id": report.id, "model": model, "target": target, "quantity": report.quantity, "points": points}
    _show(document if as_json else terminal.frontier_table(points, report.quantity))


@app.command()
def execute(
    plan: PlanText,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the quantized model to.")],
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the quantized model, loadable again with bitplan."""
    from .. import allocator
    from . import arguments, terminal

    with _state() as (settings, store), terminal.progress_bars() as tell:
        found = arguments.find_plan(plan, store)
        allocator.execute(found, out, device=device, home=settings.home, progress=tell)
    count = found.predicted.bytes.total
    _show(
        {"plan_id": found.id, "folder": str(out), "bytes": count}
        if as_json
        else f"{out}: {found.model.id} with {count:,} bytes of weights, as plan {found.id[:12]} says"
    )


@app.command()
def verify(
    plan: PlanText,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure on this; default: kept back from calibration.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Promise against fact: bytes, kernels, loss, and the uniform rival."""
    from . import arguments, terminal
    from .jobs import work

    with _state() as (settings, store):
        found = arguments.find_plan(plan, store)
        with terminal.progress_bars() as tell:
            report = work.verify_plan(store, settings.home, found, tell, None if data is None else str(data), device)
    _show(report.to_json() if as_json else terminal.evidence_table(found, report.to_json()))
    if not report.passed:
        raise typer.Exit(4)


@app.command("list")
def list_plans(
    model: Annotated[str | None, typer.Option(help="Only plans of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Stored plans, newest first."""
    from . import terminal

    with _state() as (_settings, store):
        found = store.plans(model, limit=limit)
    _show(found.model_dump() if as_json else terminal.plans_table(found.items))


@app.command()
def show(plan: PlanText, as_json: AsJson = False) -> None:
    """One plan with its bit map, layer by layer."""
    from . import arguments, terminal

    with _state() as (_settings, store):
        found = arguments.find_plan(plan, store)
    _show(json.loads(found.to_json()) if as_json else terminal.plan_page(found))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="PLAN", help="A plan's id, a unique prefix of it, or a file.")],
    b: Annotated[str, typer.Argument(metavar="PLAN", help="Another plan of the same model.")],
    as_json: AsJson = False,
) -> None:
    """The units in which two plans differ, with bytes and loss."""
    from . import arguments, terminal
    from .compare import compare_plans

    with _state() as (_settings, store):
        difference = compare_plans(arguments.find_plan(a, store), arguments.find_plan(b, store))
    _show(difference if as_json else terminal.diff_table(difference))


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    database_url: Annotated[str | None, typer.Option(help="Store to use; default: SQLite under BITPLAN_HOME.")] = None,
    as_json: AsJson = False,
) -> None:
    """The HTTP service with its dashboard, and a worker beside it."""
    from .serving import serve as run

    def announce(url: str) -> None:
        print(f"bitplan serves {url} (dashboard and API; Ctrl-C stops it)", file=sys.stderr, flush=True)
        if as_json:
            _show({"url": url})

    run(host, port, database_url, announce)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    try:
        status = app(given, prog_name="bitplan", standalone_mode=False)
    except TyperException as error:
        return _refuse(error, error.format_message().rstrip("."), getattr(error, "exit_code", 2), given)
    except Exception as error:
        from ..allocator.errors import BitplanError
        from .problems import kind_of

        if debug:
            raise
        if isinstance(error, BitplanError):
            return _refuse(error, str(error), kind_of(error).exit_status, given)
        return _refuse(error, f"{type(error).__name__}: {error}; run it again with --debug for the traceback", 1, given)
    if status == 130:
        print("bitplan: interrupted; what was measured is kept, and the same command goes on from there", file=sys.stderr)
    return int(status or 0)


def _refuse(error: Exception, sentence: str, status: int, given: list[str]) -> int:
    """One sentence on standard error, and with --json the problem document on standard output."""
    print(f"bitplan: {sentence}", file=sys.stderr)
    if "--json" in given:
        from ..allocator.errors import BitplanError, UsageError
        from .problems import other_problem, problem_of

        if isinstance(error, TyperException):
            error = UsageError(sentence)
        _show(problem_of(error) if isinstance(error, BitplanError) else other_problem("internal-error", sentence))
    return status


@contextmanager
def _state() -> Iterator[tuple[Settings, Store]]:
    """The settings and the open store."""
    from .settings import Settings
    from .store import Store

    settings = Settings.from_environment()
    with closing(Store.open(settings.database_url)) as store:
        yield settings, store


def _show(result: Any) -> None:
    """A document as JSON, anything else as text, on standard output."""
    if isinstance(result, dict):
        print(json.dumps(result, indent=1))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140  # a file or a pipe has no width to keep to
    Console(width=width, highlight=False).print(result)


if __name__ == "__main__":
    sys.exit(main())
