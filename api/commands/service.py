"""Running a service and keeping it: serve, worker, gc, keys."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from .options import AsJson, DatabaseUrl, Server, show

keys = typer.Typer(help="API keys: who may use the service, and for what.", no_args_is_help=True)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    database_url: DatabaseUrl = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="So many API processes on one socket.")] = 1,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Leave the work to `bitplan worker`.")] = False,
    as_json: AsJson = False,
) -> None:
    """The HTTP service with its dashboard, and a worker beside it."""
    from ..serving import serve as run

    def announce(url: str) -> None:
        print(f"bitplan serves {url} (dashboard and API; Ctrl-C stops it)", file=sys.stderr, flush=True)
        if as_json:
            show({"url": url})

    run(host, port, database_url, announce, worker=not no_worker, processes=processes)


def worker(database_url: DatabaseUrl = None) -> None:
    """One worker more for a service: on this machine, or on another one that uses the same PostgreSQL."""
    from ..jobs.supervisor import run_worker
    from .place import local_state

    with local_state(database_url) as (settings, _store):
        pass  # a store that cannot be used costs a sentence here, and no worker that dies again and again
    run_worker(settings, lambda sentence: print(f"bitplan: {sentence}", file=sys.stderr, flush=True))


def gc(
    older_than: Annotated[
        str, typer.Option(metavar="DAYS", help="Age from which ended jobs and unfinished measurements go: 30d, 12h.")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what nobody needs any more: renderings and exports without a plan, old jobs. Plans and profiles stay."""
    from .. import arguments, bars, listings
    from ..jobs.engine import Engine
    from ..store.artifacts import Artifacts
    from ..store.retention import collect_garbage
    from .place import local_state

    days = arguments.read_days(older_than)
    with local_state() as (settings, store), bars.progress_bars() as tell:
        artifacts = Artifacts(settings.artifacts_root)
        report = collect_garbage(store, settings.home, artifacts, older_than_days=days, dry_run=dry_run, progress=tell)
        with closing(Engine(settings.database_url)) as engine:
            report.add("steps of ended jobs", engine.forget(datetime.now(UTC) - timedelta(days=days), dry_run=dry_run))
    show(report.to_json() if as_json else listings.garbage_table(report))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; jobs bear this name as their owner.")],
    scope: Annotated[str, typer.Option(help="read: look; plan: also start jobs; admin: also delete, and make keys.")] = "read",
    days: Annotated[float | None, typer.Option(help="How long the key is good; default: until it is revoked.")] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown this once; a client sends it from BITPLAN_API_KEY."""
    from .. import arguments
    from ..schema import KeyBody
    from .place import place

    body = arguments.checked(KeyBody, name=name, scope=scope, days=days)
    with place(server) as here:
        key, secret = here.create_key(body.name, body.scope, body.days)
    print(f"the secret of key {key.id} ({key.name}, {key.scope}) is shown this once", file=sys.stderr)
    show({**key.model_dump(), "secret": secret} if as_json else secret)


@keys.command("list")
def list_keys(server: Server = None, as_json: AsJson = False) -> None:
    """All keys, without their secrets."""
    from .. import listings
    from .place import place

    with place(server) as here:
        found = here.keys()
    show({"items": [key.model_dump() for key in found]} if as_json else listings.keys_table(found))


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `bitplan keys list` shows it.")],
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make a key worthless, at once and for good."""
    from .place import place

    with place(server) as here:
        here.revoke_key(key)
    show({"id": key, "revoked": True} if as_json else f"{key} is worthless now")
