"""`bitplan serve`: the application on a socket, and the worker beside it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from ..allocator.errors import UsageError
from .app import create_app
from .jobs.supervisor import Supervisor
from .settings import Settings

CLOSE_SECONDS = 3  # open event streams are cut after so long


def serve(host: str, port: int, database_url: str | None, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; `announce` is told the address once requests are accepted there."""
    settings = Settings.from_environment(database_url=database_url)
    application = create_app(settings)
    # Ctrl-C is how a service ends, so it is no interruption of it.
    with _listen(host, port) as listener, Supervisor(settings), suppress(KeyboardInterrupt):
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{listener.getsockname()[1]}")
        config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=CLOSE_SECONDS)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host and --port") from error
