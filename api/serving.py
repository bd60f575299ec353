"""`bitplan serve`: the application on a socket, in one process or several, and the worker beside it."""

from __future__ import annotations

import multiprocessing
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
from uvicorn.supervisors import Multiprocess

from ..allocator.errors import UsageError
from .app import create_app
from .jobs.supervisor import Supervisor
from .logs import log_to
from .protocol import PATIENCE
from .settings import Settings

CLOSE_SECONDS = 3  # open event streams are cut after so long


def serve(
    host: str, port: int, database_url: str | None, announce: Callable[[str], None], *, worker: bool = True, processes: int = 1
) -> None:
    """Serve until interrupted, by so many processes on one socket, with a worker beside them unless `worker` is False;
    `announce` is told the address once requests are accepted there.

    Where other machines can reach the service, everybody needs a key, and paths may be named in BITPLAN_MODEL_ROOTS only."""
    with _listen(host, port) as listener:
        log_to()
        reachable = not ip_address(listener.getsockname()[0]).is_loopback
        settings = Settings.from_environment(database_url=database_url, require_keys=reachable)
        if settings.require_keys:
            os.environ.setdefault("BITPLAN_MODEL_ROOTS", "")  # the worker, which is given this environment, keeps to it too
        application = create_app(settings)  # here for several processes too: what is wrong with the store is said once
        _treat_sigterm_as_interrupt()
        # Ctrl-C is how a service ends, so it is no interruption of it.
        with Supervisor(settings) if worker else nullcontext(), suppress(KeyboardInterrupt):
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{listener.getsockname()[1]}")
            if processes == 1:
                uvicorn.Server(server_config(application)).run(sockets=[listener])
            else:
                os.environ["BITPLAN_HOME"], os.environ["BITPLAN_DATABASE_URL"] = str(settings.home), settings.database_url
                os.environ["BITPLAN_REQUIRE_KEYS"] = str(int(settings.require_keys))
                factory = f"{__name__}:application_of_environment"
                Multiprocess(server_config(factory, factory=True, workers=processes), [listener]).run()


def application_of_environment() -> ASGIApp:
    """The application of one of several processes, which ends with the one that started it, however that dies."""
    log_to()
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=end_with_parent, daemon=True).start()
    return create_app(Settings.from_environment())


def _treat_sigterm_as_interrupt() -> None:
    """uvicorn ends at either signal and then sends it again, to whatever handler there was before: that of SIGTERM would kill
    this process on the spot, before it has ended the worker."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def server_config(application: ASGIApp | str, **options: Any) -> uvicorn.Config:
    """How the application, or the one whose name is given, is put on a socket; `options` are uvicorn's."""
    return uvicorn.Config(
        application, log_config=None, access_log=False, timeout_graceful_shutdown=CLOSE_SECONDS, **PATIENCE, **options
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host and --port") from error
