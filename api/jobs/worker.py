"""The worker: `python -m bitplan.api.jobs.worker`, the one process that runs networks for the service.

It takes one job after another. One worker serves one home at a time: it holds an exclusive transaction on a file of its
own, which the operating system ends with the process however that dies, so a second worker waits and takes over at
once. Standard input is the cord to the process that started it: at its end the worker stops at the next report of
progress, or after STOP_SECONDS by force.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import threading
import time
import traceback
from contextlib import closing
from pathlib import Path

from ...allocator.errors import BitplanError, Interrupted
from ..problems import other_problem, problem_of
from ..schema import JobView
from ..settings import Settings
from ..store import Store
from .work import JobProgress, perform

POLL_SECONDS = 0.2
BEAT_SECONDS = 5.0
STOP_SECONDS = 10.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bitplan.api.jobs.worker", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--database-url")
    options = parser.parse_args(arguments)
    settings = Settings.from_environment(options.home, options.database_url)
    stop = threading.Event()
    threading.Thread(target=_watch_cord, args=(stop,), daemon=True).start()
    settings.home.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(settings.home / "worker.lock", timeout=0.0)) as lock:
        if not _hold(lock, stop):
            return
        with closing(Store.open(settings.database_url)) as store:
            threading.Thread(target=_beat, args=(store, stop), daemon=True).start()
            serve_jobs(store, settings.home, stop)


def serve_jobs(store: Store, home: Path, stop: threading.Event) -> None:
    """Do jobs until `stop` is set. The caller holds the worker's lock."""
    store.jobs.recover()
    while not stop.is_set():
        job = store.jobs.claim()
        if job is None:
            stop.wait(POLL_SECONDS)
        else:
            do_job(job, store, home, stop)


def do_job(job: JobView, store: Store, home: Path, stop: threading.Event) -> None:
    """Do one job and write down how it ended. Only a death of this process can keep it from ending."""
    _log(job, "started")
    try:
        result = perform(job, store, home, JobProgress(store, job.id, stop.is_set))
    except Interrupted:
        if stop.is_set():
            store.jobs.release(job.id)
        else:
            store.jobs.finish(job.id)
    except BitplanError as error:
        store.jobs.finish(job.id, problem=problem_of(error))
    except Exception as error:
        traceback.print_exc()
        detail = f"{type(error).__name__}: {error}; the worker's log has the traceback"
        store.jobs.finish(job.id, problem=other_problem("internal-error", detail))
    else:
        store.jobs.finish(job.id, result)
    _log(store.jobs.get(job.id), "ended")


def _hold(lock: sqlite3.Connection, stop: threading.Event) -> bool:
    """Wait for the lock; false when told to stop before it was free."""
    while not stop.is_set():
        try:
            lock.execute("BEGIN EXCLUSIVE")
            return True
        except sqlite3.OperationalError:
            stop.wait(POLL_SECONDS)
    return False


def _beat(store: Store, stop: threading.Event) -> None:
    while not stop.is_set():
        store.beat()
        stop.wait(BEAT_SECONDS)


def _watch_cord(stop: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would still be held by this thread when the process ends
        pass
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _log(job: JobView, event: str) -> None:
    print(f"{job.id} {job.kind} {event}: {job.status}, attempt {job.attempt}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
