"""The worker: `python -m bitplan.api.jobs.worker`, the process that runs networks for the service.

It takes what the engine gives it. Over one SQLite store one worker works at a time: it holds an exclusive transaction on a
file of its own, which the operating system ends with the process however that dies, so a second worker waits and takes over
at once. Over PostgreSQL any number work side by side. Standard input is the cord to the process that started it: at its end,
and on SIGTERM, the worker stops at the next report of progress, or after STOP_SECONDS by force.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import make_url

from ...allocator.errors import BitplanError
from ..logs import log, log_to
from ..settings import Settings
from ..store import Store
from ..store.artifacts import Artifacts
from .desk import Desk
from .engine import APPLICATION, BLOCKS, JOBS, PARENTS, Engine, workflows_version
from .presence import BEAT_SECONDS, Presence

POLL_SECONDS = 0.5  # how long a job waits for an idle worker at most; each look costs milliseconds
PIECE_POLL_SECONDS = 0.2  # pieces are short, and a profile waits for every one of them
LOCK_SECONDS = 0.2
STOP_SECONDS = 10.0
PATIENCE_SECONDS = 600.0  # how long a job bears that the database is away


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bitplan.api.jobs.worker", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--database-url")
    options = parser.parse_args(arguments)
    settings = Settings.from_environment(options.home, options.database_url)
    log_to()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_cord, args=(stop,), daemon=True).start()
    try:
        _work_alone(stop, settings)
    except BitplanError as error:
        log.error("worker", status="cannot start", reason=str(error))
        sys.exit(2)


def _work_alone(stop: threading.Event, settings: Settings) -> None:
    """Work, once no other worker does over the same file."""
    settings.home.mkdir(parents=True, exist_ok=True)
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        work_until(stop, settings)
        return
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(f"{url.database}.worker.lock", timeout=0.0)) as lock:
        if _hold(lock, stop):
            work_until(stop, settings)


def work_until(stop: threading.Event, settings: Settings) -> None:
    """Do what the engine gives until `stop` is set, and end the process: threads of the engine may still be waiting."""
    store = Store.open(settings.database_url, PATIENCE_SECONDS)
    presence, engine = Presence(store), Engine(settings.database_url, patient=True)
    desk = Desk(store, settings.home, Artifacts(settings.artifacts_root), engine, presence)
    presence.beat()
    _launch(desk)
    log.info("worker", worker=presence.view.id, status="ready", version=workflows_version())
    threading.Thread(target=_beat, args=(presence,), daemon=True).start()
    _look_after(desk, stop)
    desk.stop.set()
    desk.wait_for_rest(STOP_SECONDS)
    with suppress(BitplanError):
        presence.leave()
    log.info("worker", worker=presence.view.id, status="stopped")
    sys.stderr.flush()
    os._exit(0)


def _launch(desk: Desk) -> None:
    """Have the engine run workflows in this process, after what dead workers left has been given back to it."""
    from dbos import DBOS, DBOSPortableJSONSerializer

    from .workflows import register_workflows

    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": desk.engine.url,
            "application_version": workflows_version(),
            "executor_id": desk.presence.view.id,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
        }
    )
    register_workflows(desk)
    DBOS.launch()
    DBOS.register_queue(JOBS, worker_concurrency=1, polling_interval_sec=POLL_SECONDS)
    DBOS.register_queue(BLOCKS, worker_concurrency=1, polling_interval_sec=PIECE_POLL_SECONDS)
    DBOS.register_queue(PARENTS, worker_concurrency=100, polling_interval_sec=POLL_SECONDS)


def _look_after(desk: Desk, stop: threading.Event) -> None:
    from .recovery import Caretaker

    caretaker = Caretaker(desk)
    while not stop.is_set():
        try:
            caretaker.look_after()
        except Exception as error:
            log.warning("cannot look after jobs now", reason=f"{type(error).__name__}: {error}"[:300])
        stop.wait(BEAT_SECONDS)


def _beat(presence: Presence) -> None:
    """A beat that comes late is a beat: whoever counts them has patience. The thread ends with the process."""
    while True:
        with suppress(BitplanError):
            presence.beat()
        threading.Event().wait(BEAT_SECONDS)


def _hold(lock: sqlite3.Connection, stop: threading.Event) -> bool:
    """Wait for the lock; false when told to stop before it was free."""
    while not stop.is_set():
        try:
            lock.execute("BEGIN EXCLUSIVE")
            return True
        except sqlite3.OperationalError:
            stop.wait(LOCK_SECONDS)
    return False


def _watch_cord(stop: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would still be held by this thread when the process ends
        pass
    stop.set()


if __name__ == "__main__":
    main()
