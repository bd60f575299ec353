"""`bitplan serve`: the application on a socket, and the worker beside it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from ipaddress import ip_address
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..allocator.errors import UsageError
from .app import create_app
from .jobs.supervisor import Supervisor
from .logs import log_to
from .protocol import PATIENCE
from .settings import Settings

CLOSE_SECONDS = 3  # open event streams are cut after so long


def serve(host: str, port: int, database_url: str | None, announce: Callable[[str], None], *, worker: bool = True) -> None:
    """Serve until interrupted, with a worker beside it unless `worker` is False; `announce` is told the address once requests
    are accepted there.

    Where other machines can reach the service, everybody needs a key, and paths may be named in BITPLAN_MODEL_ROOTS only."""
    with _listen(host, port) as listener:
        log_to()
        reachable = not ip_address(listener.getsockname()[0]).is_loopback
        settings = Settings.from_environment(database_url=database_url, require_keys=reachable)
        if settings.require_keys:
            os.environ.setdefault("BITPLAN_MODEL_ROOTS", "")  # the worker, which is given this environment, keeps to it too
        application = create_app(settings)
        _treat_sigterm_as_interrupt()
        # Ctrl-C is how a service ends, so it is no interruption of it.
        with Supervisor(settings) if worker else nullcontext(), suppress(KeyboardInterrupt):
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{listener.getsockname()[1]}")
            uvicorn.Server(server_config(application)).run(sockets=[listener])


def _treat_sigterm_as_interrupt() -> None:
    """uvicorn ends at either signal and then sends it again, to whatever handler there was before: that of SIGTERM would kill
    this process on the spot, before it has ended the worker."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def server_config(application: ASGIApp, **options: Any) -> uvicorn.Config:
    """How the application is put on a socket; `options` are uvicorn's."""
    return uvicorn.Config(
        application, log_config=None, access_log=False, timeout_graceful_shutdown=CLOSE_SECONDS, **PATIENCE, **options
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host and --port") from error
