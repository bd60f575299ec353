"""`bitplan jobs`: what a service is busy with."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import AsJson, Server, show

app = typer.Typer(help="What a service is busy with.", invoke_without_command=True, no_args_is_help=False)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Status = Annotated[str | None, typer.Option(help="Only queued, running, canceling, succeeded, failed or canceled ones.")]
Kind = Annotated[str | None, typer.Option(help="Only jobs that inspect, profile, plan, verify, execute or sweep.")]
Limit = Annotated[int, typer.Option(min=1, max=200, help="At most so many.")]


@app.callback()
def jobs(context: typer.Context) -> None:
    """What a service is busy with; alone it lists, as `bitplan jobs list`."""
    if context.invoked_subcommand is None:
        command = context.command.get_command(context, "list")  # type: ignore[attr-defined]
        with command.make_context("list", [], parent=context) as alone:
            command.invoke(alone)


@app.command("list")
def list_jobs(
    status: Status = None, kind: Kind = None, limit: Limit = 50, server: Server = None, as_json: AsJson = False
) -> None:
    """Jobs, newest first."""
    from .. import arguments, listings
    from .place import place

    arguments.check_job_filters(status, kind)
    with place(server) as here:
        found = here.jobs(status=status, kind=kind, limit=limit)
    show(found.model_dump() if as_json else listings.jobs_table(found.items))


@app.command("show")
def show_job(job: JobId, server: Server = None, as_json: AsJson = False) -> None:
    """One job: how far it is, what came of it."""
    from .. import listings
    from .place import place

    with place(server) as here:
        found = here.job(job)
    show(found.model_dump() if as_json else listings.job_page(found))


@app.command()
def cancel(job: JobId, server: Server = None, as_json: AsJson = False) -> None:
    """Ask a job to stop; what was measured is kept."""
    from .. import listings
    from .place import place

    with place(server) as here:
        found = here.cancel(job)
    show(found.model_dump() if as_json else listings.job_page(found))


@app.command()
def watch(job: JobId, server: Server = None, as_json: AsJson = False) -> None:
    """Follow a job to its end; the exit status is that of the command whose work it does."""
    from ...allocator.errors import Interrupted
    from .. import bars, listings
    from ..problems import error_of
    from .place import place

    with place(server) as here, bars.progress_bars() as tell:
        found = here.job(job)
        for found in here.follow(job):
            if found.progress is not None:
                tell(found.progress.stage, found.progress.done, found.progress.total)
    if found.error is not None:
        raise error_of(found.error.model_dump())
    if found.status == "canceled":
        raise Interrupted(f"job {found.id} was canceled; what was measured is kept")
    show(found.model_dump() if as_json else listings.job_page(found))
