"""How the socket is served: uvicorn with an end to patience.

uvicorn closes a connection that says nothing between two requests, but waits for ever for the end of a request's head: a
few thousand connections that send a byte a minute would take up the service. Here the head of every request has to be
there HEAD_SECONDS after its first byte, or after the connection was opened. Bodies are the guard's to time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 15
CONNECTIONS = 1000  # beyond these, requests are answered 503 at once


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 in which the head of a request may take HEAD_SECONDS at most."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._head is None and self.conn.their_state is h11.IDLE:
            self._expect_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()


# What `uvicorn.Config` is told beside the application.
PATIENCE: dict[str, Any] = {
    "http": ImpatientProtocol,
    "ws": "none",
    "h11_max_incomplete_event_size": HEAD_BYTES,
    "limit_concurrency": CONNECTIONS,
    "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    "server_header": False,
}
