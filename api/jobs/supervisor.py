"""Supervisor: keeps one worker process alive beside the service.

A worker that dies (out of memory, segmentation fault, kill -9) is started again after a pause that doubles with every
quick death. Its standard input is the cord described in `worker.py`: when this process goes, even by kill -9, the cord
ends and so does the worker.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from ..settings import Settings

QUICK_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
STOP_SECONDS = 15.0


class Supervisor:
    """A context: inside it a worker runs. `command` is what to run, by default this Python's `bitplan.api.jobs.worker`."""

    def __init__(self, settings: Settings, command: Sequence[str] | None = None) -> None:
        default = (sys.executable, "-m", "bitplan.api.jobs.worker")
        self._command = [*(command or default), "--home", str(settings.home), "--database-url", settings.database_url]
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
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
            self._process = process
            while process.poll() is None and not self._stop.wait(0.1):
                pass
            if process.poll() is None:
                _end(process)
                return
            assert process.stdin is not None
            process.stdin.close()
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > QUICK_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
            print(f"the worker died (status {process.returncode}); another starts in {pause:g} s", file=sys.stderr, flush=True)
            self._stop.wait(pause)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Cut the cord; after STOP_SECONDS end the worker by force."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
