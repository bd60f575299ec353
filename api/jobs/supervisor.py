"""Supervisor: keeps one worker process alive, beside the service or alone.

A worker that dies (out of memory, segmentation fault, kill -9) is started again after a pause that doubles with every
quick death. Its standard input is the cord described in `worker.py`: when this process goes, even by kill -9, the cord
ends and so does the worker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from ..logs import log, log_to
from ..settings import Settings

QUICK_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
STOP_SECONDS = 15.0


class Supervisor:
    """A context: inside it a worker runs. `command` is what to run, by default this Python's `bitplan.api.jobs.worker`."""

    def __init__(self, settings: Settings, command: Sequence[str] | None = None) -> None:
        default = (sys.executable, "-m", "bitplan.api.jobs.worker")
        self._command = [*(command or default), "--home", str(settings.home)]
        # Not among the arguments, which everybody on the machine can read: the URL may hold a password.
        self._environment = {**os.environ, "BITPLAN_DATABASE_URL": settings.database_url}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="bitplan-supervisor", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def worker_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _keep_alive(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            began = time.monotonic()
            # A session of its own: Ctrl-C in the terminal is for the service, which then ends the worker in good order.
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True, env=self._environment)
            self._process = process
            while process.poll() is None and not self._stop.wait(0.1):
                pass
            if process.poll() is None:
                _end(process)
                return
            assert process.stdin is not None
            process.stdin.close()
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > QUICK_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
            log.warning("the worker died; another starts", status=process.returncode, seconds=pause)
            self._stop.wait(pause)


def run_worker(settings: Settings, announce: Callable[[str], None]) -> None:
    """Keep a worker alive until interrupted or terminated; `announce` is told in a sentence what goes on."""
    log_to()
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with Supervisor(settings), suppress(KeyboardInterrupt):
            announce("a worker is starting; Ctrl-C stops it at the next step, which it goes on from later")
            stop.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Cut the cord; after STOP_SECONDS end the worker by force."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
